"""GLUE's own files, in its own formats, and TFDS's reading of the same files give the same records."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from bert_jax.errors import BertWarning, UserError
from bert_jax.tasks import glue, metrics, record_labels, table_files


def table(*rows):
    """Rows of a file; bars stand for tabs."""
    return "".join(row.replace("|", "\t") + "\n" for row in rows)


PARSES = "sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
TREES = "( a )|( b )|(ROOT a)|(ROOT b)"
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
# The header lines of GLUE's files, and rows under them; quotes are letters.
FILES = {
    "CoLA/train.tsv": table("gj04|1||Our friends won't \"buy this.", 'cj99|0|*|The more "you would" want.'),
    "CoLA/dev.tsv": table("gj04|1||The sailors rode.", "ks08|0|*|He walked the."),
    "CoLA/test.tsv": table("index|sentence", '0|Bill whistled "past the house.', "1|The car honked."),
    "SST-2/train.tsv": table("sentence|label", 'hide new " secretions |0', "that loves its characters |1"),
    "SST-2/dev.tsv": table("sentence|label", "it 's charming |1", "unflinchingly bleak |0"),
    "SST-2/test.tsv": table("index|sentence", "0|uneasy mishmash", '1|a " family drama'),
    "MRPC/train.tsv": table(
        "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String",
        '1|702876|702977|Amrozi accused "the witness .|Referring to him "',
        "0|2108705|2108831|Yucaipa owned it .|Yucaipa bought it .",
    ),
    "MRPC/dev.tsv": table("\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String", "0|1355540|1355592|He said .|They did ."),
    "MRPC/test.tsv": table(
        "index|#1 ID|#2 ID|#1 String|#2 String", "0|1089874|1089925|PCCW 's \"chief .|Current chief .", "1|1|2|A .|B ."
    ),
    "QQP/train.tsv": table(
        "id|qid1|qid2|question1|question2|is_duplicate",
        '133273|213221|213222|How is "life?|What is life?|1',
        "402555|536040|536041|How do I \nget out?|How can I?|0",
        "360472|364011|490273||An empty one?|0",
    ),
    "QQP/dev.tsv": table("id|qid1|qid2|question1|question2|is_duplicate", "201359|303345|303346|Why?|Why not?|0"),
    "QQP/test.tsv": table("id|question1|question2", '0|Would Raj" win?|What?', "1|How?|How so?"),
    "STS-B/train.tsv": table(
        f"{STSB}|score",
        '0|main-captions|MSRvid|2012test|0001|none|none|A "plane takes off.|An air plane.|5.000',
        "1|main-captions|MSRvid|2012test|0004|none|none|A man plays.|A man sleeps.|3.800",
    ),
    "STS-B/dev.tsv": table(f"{STSB}|score", "0|main-captions|MSRvid|2012test|0000|none|none|A hat.|A hard hat.|0.250"),
    "STS-B/test.tsv": table(
        STSB, "0|main-captions|MSRvid|2012test|0024|none|none|A girl.|The girl.", "1|main-news|x|2013|1|none|none|A.|B."
    ),
    "MNLI/train.tsv": table(
        f"index|promptID|pairID|genre|{PARSES}|sentence1|sentence2|label1|gold_label",
        f'0|31193|31193n|government|{TREES}|Conceptually "cream.|Product.|neutral|neutral',
        f"1|101457|101457e|telephone|{TREES}|you know.|You lose.|entailment|entailment",
        f"2|134793|134793c|fiction|{TREES}|One of ours.|None.|contradiction|contradiction",
    ),
    **{
        f"MNLI/dev_{kind}.tsv": table(
            f"index|promptID|pairID|genre|{PARSES}|sentence1|sentence2|label1|label2|label3|label4|label5|gold_label",
            f"0|63735|63735n|slate|{TREES}|Rights, {kind}.|Everyone.|neutral|entailment|neutral|neutral|neutral|neutral",
        )
        for kind in ("matched", "mismatched")
    },
    **{
        f"MNLI/test_{kind}.tsv": table(
            f"index|promptID|pairID|genre|{PARSES}|sentence1|sentence2",
            f"0|31493|31493|travel|{TREES}|Bazaars, {kind}.|None.",
            f"1|92164|92164|government|{TREES}|You.|Me.",
        )
        for kind in ("matched", "mismatched")
    },
    "QNLI/train.tsv": table(
        "index|question|sentence|label", '0|When did it?|In the "Dutch.|entailment', "1|Who?|Nobody.|not_entailment"
    ),
    "QNLI/dev.tsv": table("index|question|sentence|label", "0|What came?|As of that day.|entailment"),
    "QNLI/test.tsv": table("index|question|sentence", "0|What organization?|In 2006.", '1|What "seldom?|It is.'),
    "RTE/train.tsv": table(
        "index|sentence1|sentence2|label", '0|No Weapons "of Iraq.|Weapons.|not_entailment', "1|A place.|A.|entailment"
    ),
    "RTE/dev.tsv": table("index|sentence1|sentence2|label", "0|Dana Reeve.|Christopher.|not_entailment"),
    "RTE/test.tsv": table("index|sentence1|sentence2", "0|Mangla was summoned.|Co-hostess.", "1|Authorities.|A tribunal."),
    "WNLI/train.tsv": table("index|sentence1|sentence2|label", '0|I stuck a "pin.|The carrot.|1', "1|John couldn't see.|John.|0"),
    "WNLI/dev.tsv": table("index|sentence1|sentence2|label", "0|The drain is clogged.|The hair.|0"),
    "WNLI/test.tsv": table("index|sentence1|sentence2", "0|Maude and Dora.|Horses.", "1|And.|So."),
    "diagnostic/diagnostic.tsv": table(
        "index|sentence1|sentence2", '0|The cat sat on the "mat.|The cat did not.', "1|Snow.|No snow."
    ),
    "diagnostic/diagnostic-full.tsv": table(
        "Lexical Semantics|Predicate-Argument Structure|Logic|Knowledge|Domain|Premise|Hypothesis|Label",
        '||Negation||Artificial|The cat sat on the "mat.|The cat did not.|contradiction',
        "||||News|Snow.|No snow.|neutral",
    ),
}
SPLITS = [(task, split) for task, spec in glue.TASKS.items() for split in spec.files]
# Label and texts of the first record of every training file, as the rows above have them.
FIRST = {
    "cola": ("acceptable", "Our friends won't \"buy this."),
    "sst2": ("negative", 'hide new " secretions '),
    "mrpc": ("equivalent", 'Amrozi accused "the witness .', 'Referring to him "'),
    "qqp": ("duplicate", 'How is "life?', "What is life?"),
    "stsb": ("5.000", 'A "plane takes off.', "An air plane."),
    "mnli": ("neutral", 'Conceptually "cream.', "Product."),
    "qnli": ("entailment", "When did it?", 'In the "Dutch.'),
    "rte": ("not_entailment", 'No Weapons "of Iraq.', "Weapons."),
    "wnli": ("entailment", 'I stuck a "pin.', "The carrot."),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("glue"))
    for name, content in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content)
    return directory


def read(task, data, split):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BertWarning)
        return glue.read(task, data, split)


@pytest.mark.parametrize("task", FIRST)
def test_training_records(data, task):
    first, *others = read(task, data, "train")
    assert (first.label, *first.texts) == FIRST[task]
    assert first.id == ("133273" if task == "qqp" else "0")
    spec = glue.TASKS[task]
    path = data / spec.directories[0] / "train.tsv"
    assert first.where == f"{path}, line {1 if task == 'cola' else 2}"
    # The directory of the task will do as well.
    assert read(task, path.parent, "train") == [first, *others]
    if spec.labels:
        assert {record.label for record in [first, *others]} == set(spec.labels)
        assert {*record_labels.class_ids([first, *others], spec.labels).tolist()} == set(range(len(spec.labels)))
    else:
        np.testing.assert_array_equal(record_labels.scores([first, *others]), np.array([5, 3.8], np.float32))


@pytest.mark.parametrize(("task", "split"), SPLITS)
def test_every_split(data, task, split):
    records = read(task, data, split)
    spec = glue.TASKS[task]
    assert {len(record.texts) for record in records} == {1 if task in ("cola", "sst2") else 2}
    if split.startswith("test"):
        assert [(record.label, record.id) for record in records] == [(None, "0"), (None, "1")]
    elif spec.labels:
        assert {record.label for record in records} <= set(spec.labels)
    if task == "mnli" and split != "train":
        assert records[0].texts[0].endswith(" mismatched." if "mismatched" in split else " matched.")


def test_the_diagnostics_with_and_without_labels(data):
    labelled, secret = read("ax", data, "dev"), read("ax", data, "test")
    assert [record.texts for record in labelled] == [record.texts for record in secret]
    assert [record.label for record in labelled] == ["contradiction", "neutral"]
    assert [record.id for record in labelled] == [record.id for record in secret]


def test_task_definitions_are_complete(data):
    assert [*glue.TASKS] == ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "ax"]
    for task, spec in glue.TASKS.items():
        assert spec.main_score in spec.metrics
        assert {*spec.metrics} <= {*metrics.METRICS}
        assert len(spec.aliases) in (0, len(spec.labels))
        assert ("f1" in spec.metrics) == (spec.positive is not None)
        assert spec.positive in (None, *spec.labels)
        assert bool(spec.labels) == (task != "stsb")
        assert {*spec.submissions} == {split for split in spec.files if split.startswith("test")}
    # What the server wants, in the order of its page.
    wanted = ["CoLA", "SST-2", "MRPC", "QQP", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
    assert [name for spec in glue.TASKS.values() for name in spec.submissions.values()] == [f"{name}.tsv" for name in wanted]
    assert {task: spec.main_score for task, spec in glue.TASKS.items() if spec.main_score != "accuracy"} == {
        "cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "spearman", "ax": "matthews",
    }  # fmt: skip


def test_broken_lines_of_qqp_are_counted_once(data):
    with pytest.warns(BertWarning, match=r"train.tsv has 2 broken lines, the first is line 3; they are left out") as said:
        records = glue.read("qqp", data, "train")
    assert len(said) == 1
    assert [record.id for record in records] == ["133273", "360472"]
    assert records[1].texts == ("", "An empty one?")


def put(directory, name, content):
    (directory / name).parent.mkdir(exist_ok=True, parents=True)
    (directory / name).write_text(content)


def test_broken_lines_elsewhere_are_refused(tmp_path):
    put(tmp_path, "RTE/train.tsv", FILES["RTE/train.tsv"] + "2\tbroken\n")
    with pytest.raises(UserError, match=r"RTE/train.tsv, line 4 has 2 fields"):
        glue.read("rte", tmp_path, "train")
    # A test file must give one prediction for each line.
    put(tmp_path, "QQP/test.tsv", FILES["QQP/test.tsv"] + "2\tbroken\n")
    with pytest.raises(UserError, match=r"QQP/test.tsv, line 4 has 2 fields"):
        glue.read("qqp", tmp_path, "test")


@pytest.mark.parametrize(
    ("task", "split", "name", "content", "sentence"),
    [
        (
            "mnli",
            "train",
            "MNLI/train.tsv",
            FILES["MNLI/train.tsv"].replace("\tneutral\n", "\t-\n"),
            "line 2: the label '-' is none of",
        ),
        (
            "rte",
            "dev",
            "RTE/dev.tsv",
            FILES["WNLI/dev.tsv"],
            "line 2: the label '0' is none of rte; its labels are entailment, not_",
        ),
        ("cola", "dev", "CoLA/dev.tsv", "gj04\t2\t\tA.\n", "line 1: the label '2' .* unacceptable, acceptable, 0, 1"),
        ("sst2", "dev", "SST-2/dev.tsv", "sentence\tlabel\nfine \t\n", "line 2: the label '' is none of sst2"),
        (
            "qnli",
            "dev",
            "QNLI/dev.tsv",
            FILES["RTE/dev.tsv"],
            r"qnli has the columns 'question', 'sentence', 'label', .* QNLI/dev.tsv\?",
        ),
        ("rte", "dev", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\t\t \tentailment\n", "line 2: there is no text"),
        ("rte", "dev", "RTE/train.tsv", "", "no dev.tsv of RTE in .*; looked for .*RTE/dev.tsv, .*dev.tsv"),
        ("rte", "dev_mismatched", "RTE/dev.tsv", "", "rte has no split 'dev_mismatched'; choose one of train, dev, test"),
        ("boolq", "dev", "RTE/dev.tsv", "", "no GLUE task 'boolq'; choose one of cola"),
    ],
)
def test_files_of_other_kinds(tmp_path, task, split, name, content, sentence):
    put(tmp_path, name, content)
    with pytest.raises(UserError, match=sentence):
        glue.read(task, tmp_path, split)


@pytest.fixture
def offline(monkeypatch, tmp_path, data):
    """TFDS with the files above in place of what it would download."""

    def fetch(self, url):
        # MRPC comes from its authors, who have no development file but a list of ids.
        if isinstance(url, dict):
            (tmp_path / "ids.tsv").write_text("1355540\t1355592\n")
            header, *rest = FILES["MRPC/dev.tsv"].splitlines(keepends=True)
            (tmp_path / "train.tsv").write_text(FILES["MRPC/train.tsv"] + "".join(rest))
            assert FILES["MRPC/train.tsv"].startswith(header)
            return {"dev_ids": tmp_path / "ids.tsv", "train": tmp_path / "train.tsv", "test": data / "MRPC" / "test.tsv"}
        return data / "diagnostic" / "diagnostic.tsv" if "bit.ly" in url else data

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fetch)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", fetch)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    tfds.disable_progress_bar()


@pytest.mark.parametrize("task", glue.TASKS)
def test_tfds_reads_the_same_from_the_same_files(offline, data, tmp_path, task, capsys):
    """TFDS's own GLUE, which numbers classes in its own way, shuffles, and drops what is broken."""
    for split, file in glue.TASKS[task].files.items():
        if file.tfds is None:
            with pytest.raises(UserError, match="TFDS has no labels for the diagnostics"):
                glue.read(task, f"tfds:glue/{task}", split)
            continue
        found = glue.read(task, f"tfds:glue/{task}", split)
        assert found[0].where == f"tfds:glue/{task}, {file.tfds} example 1"
        wanted = read(task, data, split)
        if task == "stsb" and file.label:
            wanted = [record._replace(label=str(float(record.label))) for record in wanted]
        assert sorted(record[:2] for record in found) == sorted(record[:2] for record in wanted)
        if split.startswith("test"):
            assert {record.id: record.texts for record in found} == {record.id: record.texts for record in wanted}
        # As a directory, too.
        (directory,) = (tmp_path / "tfds" / "glue" / task).iterdir()
        assert [record[:2] for record in glue.read(task, f"tfds:{directory}", split)] == [record[:2] for record in found]
    assert capsys.readouterr().out == ""


class Prepared(tfds.core.GeneratorBasedBuilder):
    """One example for each class, with features as given."""

    VERSION = tfds.core.Version("1.0.0")
    name = "prepared"
    pkg_dir_path = epath.Path(__file__).parent

    def __init__(self, features, examples, **kwargs):
        self._features, self._examples = features, examples
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self._features), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self._examples)


@pytest.fixture
def prepare(tmp_path):
    def make(features, examples):
        tfds.disable_progress_bar()
        builder = Prepared(features, examples, data_dir=tmp_path / "tfds", file_format="array_record")
        builder.download_and_prepare()
        return f"tfds:{builder.data_dir}"

    return make


def test_names_of_classes_count_and_not_their_numbers(prepare):
    label = tfds.features.ClassLabel(names=["acceptable", "0"])
    path = prepare(
        {"sentence": tfds.features.Text(), "label": label}, [{"sentence": "é", "label": 0}, {"sentence": "b", "label": "0"}]
    )
    records = glue.read("cola", path, "train")
    assert [record[:2] for record in records] == [(("é",), "acceptable"), (("b",), "unacceptable")]
    assert [record.id for record in records] == ["0", "1"]
    with pytest.raises(UserError, match=r"has no split 'validation', which cola needs, but train\."):
        glue.read("cola", path, "dev")
    with pytest.raises(UserError, match="the label 'acceptable' is none of sst2"):
        glue.read("sst2", path, "train")
    with pytest.raises(UserError, match="has no feature sentence1, sentence2 but label, sentence; it is not mrpc as TFDS has it"):
        glue.read("mrpc", path, "train")


def test_labels_that_are_missing_or_scores(prepare):
    label = tfds.features.ClassLabel(names=["unacceptable", "acceptable"])
    path = prepare({"sentence": tfds.features.Text(), "label": label}, [{"sentence": "a", "label": -1}])
    with pytest.raises(UserError, match="train example 1: there is no label"):
        glue.read("cola", path, "train")


def test_scores_are_no_classes(prepare):
    path = prepare({"sentence": tfds.features.Text(), "label": np.float32}, [{"sentence": "a", "label": 1.0}])
    with pytest.raises(UserError, match=r"The labels of .* are Tensor.*float32.*; it is not cola"):
        glue.read("cola", path, "train")


def test_errors_of_tfds_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    for name in ("glue/nothing", "no_such_data_set", "what is this"):
        with pytest.raises(
            UserError, match=rf"^tfds:{name} cannot be read from TFDS \([^\n]*\); give the directory of GLUE's own files"
        ):
            glue.read("cola", f"tfds:{name}", "train")
    with pytest.raises(UserError, match="There is no data set of TFDS at /no/where"):
        glue.read("cola", "tfds:/no/where", "train")

    def fail(self, url):
        raise ConnectionError("HTTPSConnectionPool(host='dl.fbaipublicfiles.com', port=443): Max retries exceeded.\nmore")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    with pytest.raises(
        UserError,
        match=r"^tfds:glue/cola cannot be read from TFDS \(HTTPS.* Max retries exceeded\); give the directory of GLUE's own",
    ):
        glue.read("cola", "tfds:glue/cola", "train")


@pytest.mark.parametrize(("task", "split"), [(task, split) for task, split in SPLITS if split in glue.TASKS[task].submissions])
def test_a_submission_is_read_back(data, tmp_path, task, split):
    spec = glue.TASKS[task]
    ids = [record.id for record in read(task, data, split)]
    # A model may number the classes in another order than GLUE.
    names = spec.labels[::-1]
    predictions = np.array([1, 0]) if names else np.array([2.0004, 5.3])
    path = glue.write_submission(task, split, ids, predictions, names, tmp_path / "out")
    assert epath.Path(path) == tmp_path / "out" / spec.submissions[split]
    assert path.read_text().startswith("index\tprediction\n")
    rows = [row.fields for row in table_files.rows(path)]
    assert [row["index"] for row in rows] == ids
    digits = task in ("cola", "sst2", "mrpc", "qqp", "wnli")
    wanted = ["2.000", "5.000"] if task == "stsb" else [str(spec.labels.index(names[n])) if digits else names[n] for n in (1, 0)]
    assert [row["prediction"] for row in rows] == wanted
    with pytest.raises(UserError, match="exists already"):
        glue.write_submission(task, split, ids, predictions, names, tmp_path / "out")


def test_submissions_in_full(tmp_path):
    def written(task, predictions, labels):
        ids = [str(number) for number in range(len(predictions))]
        return glue.write_submission(task, "test", ids, np.array(predictions), labels, tmp_path).read_text()

    assert written("stsb", [-0.0, -3.0, 4.99951, 1.23449], ()) == "index\tprediction\n0\t0.000\n1\t0.000\n2\t5.000\n3\t1.234\n"
    # A model of MNLI in TFDS's order of the classes.
    mnli = ("entailment", "neutral", "contradiction")
    assert written("ax", [0, 1, 2], mnli) == "index\tprediction\n0\tentailment\n1\tneutral\n2\tcontradiction\n"
    assert written("wnli", [0, 1], ("entailment", "not_entailment")) == "index\tprediction\n0\t1\n1\t0\n"


def test_submissions_that_make_no_sense(tmp_path):
    def write(task, split, predictions, labels, ids=("0",)):
        glue.write_submission(task, split, ids, np.array(predictions), labels, tmp_path)

    with pytest.raises(UserError, match="The server scores test and test_mismatched of mnli, not dev"):
        write("mnli", "dev", [0], ("entailment",))
    with pytest.raises(UserError, match="The model: the label 'contradiction' is none of rte"):
        write("rte", "test", [0], ("contradiction", "entailment", "neutral"))
    with pytest.raises(UserError, match="not a finite number"):
        write("stsb", "test", [np.nan], ())
    with pytest.raises(ValueError, match="1 ids and predictions of shape"):
        write("rte", "test", [0, 1], ("entailment", "not_entailment"))
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match="and there are 2 labels"):
            write("rte", "test", [wrong], ("entailment", "not_entailment"))
    assert not [*tmp_path.iterdir()]
