"""Files that are something else than their names say: pointers, web pages, archives, the formats of other programs."""

from __future__ import annotations

from etils import epath

from bert_jax.errors import UserError

# Bytes that a file's kind is told from; a tar archive has its mark at byte 257.
_HEAD = 512
_TAR_MARK = b"ustar"
_KERAS = "is a Keras file, which TensorFlow alone reads; load it with transformers 4 and save it as model.safetensors"
_GGUF = "is a GGUF file, the format of llama.cpp; use the model that it was made from, as model.safetensors"
_WEB_PAGE = "is a web page, not the file itself; download the file again, from its address for raw content"
_ARCHIVE = "is an archive; unpack it and name the directory"
# The first bytes of files, what such a file is, and what to do.
_KINDS: dict[bytes, str] = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run git lfs pull in its repository",
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"<?xml": "is an XML document, perhaps a server's error message; download the file again",
    b"gguf": _GGUF,
    b"\x89hdf\r\n": _KERAS,
    b"\x1f\x8b": _ARCHIVE,
}
# The same by suffix.
_SUFFIXES: dict[str, str] = {
    ".onnx": "is an ONNX file, a compiled graph; use the model that it was exported from, as model.safetensors",
    ".h5": _KERAS,
    ".keras": _KERAS,
    ".gguf": _GGUF,
    ".tflite": "is a TensorFlow Lite file, a compiled graph; use the model that it was made from",
    ".pb": "is a TensorFlow graph; use the checkpoint that it was made from, bert_model.ckpt.*",
    ".ot": "is a file for Rust; use the model.safetensors that it was made from",
    ".zip": _ARCHIVE,
    ".tar": _ARCHIVE,
    ".tgz": _ARCHIVE,
    ".gz": _ARCHIVE,
    ".bz2": _ARCHIVE,
    ".xz": _ARCHIVE,
    ".7z": _ARCHIVE,
}


def check(path: epath.Path, *, weights: bool = False) -> None:
    """Check that a file is what its name says, as far as its first bytes tell.

    Args:
      path: an existing file.
      weights: whether it has to contain tensors, and so cannot be a text.

    Raises:
      UserError: it is empty, or a file of another kind.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory, not a file.")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise UserError(f"{path} is empty; copy or download it again.")
    for mark, kind in _KINDS.items():
        if start.startswith(mark):
            raise UserError(f"{path} {kind}.")
    if head[257:262] == _TAR_MARK:
        raise UserError(f"{path} {_ARCHIVE}.")
    if weights and _is_text(head):
        begin = " ".join(head.decode().split())[:40]
        raise UserError(f"{path} is a text that begins with {begin!r}, not a file of weights; copy or download it again.")


def kind(path: epath.Path) -> str | None:
    """Return what a file is and what to do, by its suffix; None if the suffix is not that of another program.

    Examples:
      >>> kind(epath.Path("model.onnx"))
      'is an ONNX file, a compiled graph; use the model that it was exported from, as model.safetensors'
    """
    return _SUFFIXES.get(path.suffix.lower())


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in text)
