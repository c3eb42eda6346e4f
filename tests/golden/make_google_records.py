"""Write google_records/: texts, a vocabulary, and the TFRecord files that the original makes from them, for four sets of flags.

    python make_google_records.py ORIGINAL google_records

ORIGINAL is a checkout of google-research/bert at eedf571. Run with TensorFlow 2.21.0 on Python 3.11 (2026-11-28); the original is
run as it is, with ``tensorflow.compat.v1`` under the name of TensorFlow 1.
"""

import gzip
import json
import pathlib
import random
import runpy
import subprocess
import sys

WORDS = (
    "the of a in was it river Bridge town Old stones water north Winter summer people market house unbelievable unhappily "
    "rebuilding town's 1821 3.14 café naïve Zürich ΟΔΟΣ İzmir 東京 大阪市 ﬁre ½ e-mail (see) \u201cquoted\u201d semi-\u00adsoft "
    "xyzzyx \ue000 \U0002b820 A\u0301ngel \u2028 tab\there"
).split(" ")
PIECES = (
    "[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] the of a in was it river bridge Bridge town old Old stones water north winter "
    "Winter summer people market house un ##believ ##able ##happi ##ly re ##build ##ing ' s 18 ##21 3 . 14 caf ##e ##é na ##ive "
    "##ï ##ve zurich Z ##ü ##rich ο ##δ ##ο ##ς ##σ iz ##mir 東 京 大 阪 市 f ##ire ﬁ ##re ½ e - mail ( see ) \u201c quoted \u201d "
    "semi soft angel x ##y ##z ##x tab here \ue000 , the"
).split(" ")
RUNS = {
    "uncased": ["--dupe_factor=3", "--max_seq_length=32", "--max_predictions_per_seq=5"],
    "cased_words": [
        "--do_lower_case=False", "--do_whole_word_mask=True", "--max_seq_length=24", "--max_predictions_per_seq=4",
        "--masked_lm_prob=0.2", "--short_seq_prob=0.5", "--random_seed=7", "--dupe_factor=2",
    ],
    "long": ["--do_whole_word_mask=True", "--max_seq_length=128", "--max_predictions_per_seq=20", "--dupe_factor=1"],
    "short": ["--max_seq_length=5", "--max_predictions_per_seq=1", "--dupe_factor=1", "--short_seq_prob=1"],
}  # fmt: skip
FILES = {"uncased": 3, "cased_words": 1, "long": 2, "short": 1}


def make_texts(out):
    rng = random.Random(0)
    texts = ["\ufeff\n", ""]
    for document in range(40):
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) + "." for _ in range(rng.randint(1, 9))]
        blank = rng.choice(["\n", "\n\n", " \t\n", "\x1c\n", "\r\n"])
        texts[document // 20] += "".join(line + rng.choice(["\n", "\r\n"]) for line in lines) + blank
    # The second file continues the last document of the first one, and ends without a line break.
    for number, text in enumerate((texts[0].rstrip(), texts[1].rstrip())):
        (out / f"text_{number}.txt").write_bytes(text.encode())
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))


def main(original, out):
    out.mkdir()
    make_texts(out)
    texts = ",".join(str(out / f"text_{number}.txt") for number in range(2))
    for name, flags in RUNS.items():
        files = [out / f"{name}-{number}.tfrecord" for number in range(FILES[name])]
        command = [sys.executable, __file__, original, "--input_file=" + texts, f"--vocab_file={out / 'vocab.txt'}", *flags]
        subprocess.run([*command, "--output_file=" + ",".join(map(str, files))], check=True, capture_output=True)
        for file in files:
            (out / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
            file.unlink()
    (out / "flags.json").write_text(json.dumps({name: dict(flag[2:].split("=") for flag in flags) for name, flags in RUNS.items()}))


if __name__ == "__main__":
    if sys.argv[2].startswith("--"):
        import tensorflow

        sys.modules["tensorflow"] = tensorflow.compat.v1
        sys.path.insert(0, sys.argv[1])
        script = sys.argv.pop(1)
        runpy.run_path(f"{script}/create_pretraining_data.py", run_name="__main__")
    else:
        main(sys.argv[1], pathlib.Path(sys.argv[2]))
