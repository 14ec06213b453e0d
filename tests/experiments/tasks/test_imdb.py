"""IMDB from a folder as it is published: numbers of words, the sets, and what is trained on them."""

import hashlib
import io
import json
import random
import re
import tarfile

import numpy as np
import pytest
import torch
from safetensors import safe_open

import experiments
import neuralosc
from experiments import tasks
from experiments.command import cli
from experiments.tasks import imdb, words
from experiments.tasks.series import batch_of
from experiments.train import training
from experiments.train.config import RunConfig
from experiments.train.model import build, make_task
from solvers.errors import InputError

FILLER = ["the", "film", "it's", "was", "A", "I", "and", "plot", "don't", "10/10", "scene", "well-made", ","]
SAID = {"neg": ["dull", "awful", "boring"], "pos": ["wonderful", "superb", "moving"]}


def write(root, count=40, longest=12, seed=0):
    """A folder of the published layout: in every text some words of its class, and others of both."""
    draw = random.Random(seed)
    for part in ("train", "test"):
        for name, said in SAID.items():
            folder = root / "aclImdb" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                text = [draw.choice(FILLER) for _ in range(draw.randint(4, longest))]
                for _ in range(2):
                    text.insert(draw.randrange(len(text)), draw.choice(said))
                (folder / f"{number}_{9 if name == 'pos' else 2}.txt").write_text(" ".join(text) + ".<br /><br />")
            (root / "aclImdb" / part / "labeledBow.feat").write_text("1 0:1\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("imdb"))


def command(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_a_text_is_cut_into_words_and_signs():
    text = "I don\u2019t think it's GOOD...<br /><br />Well-made, 3.5/10! Can't <br>'na\u00efve'_ 1,000 -- 20th"
    found = "i do n't think it 's good ... well - made , 3.5 / 10 ! ca n't ' na\u00efve ' _ 1,000 -- 20th"
    assert words.tokenized(text) == found.split(" ")
    assert words.tokenized("") == words.tokenized(" <br/>\n") == []


def test_the_sets_hold_the_words_of_their_texts(folder):
    task = tasks.get("imdb", data_dir=str(folder))
    train, validation, test = task.splits(0)
    assert [len(part) for part in (train, validation, test)] == [56, 24, 80]
    published = {}
    for part in ("train", "test"):
        for label, name in enumerate(("neg", "pos")):
            for path in (folder / "aclImdb" / part / name).glob("*.txt"):
                published.setdefault(part, []).append((tuple(words.tokenized(path.read_text())), label))
    known = ["?", *task.words]
    seen = []
    for part in (train, validation, test):
        batch = batch_of(part, slice(None))
        assert batch.x.dtype == torch.int32 and batch.x.shape[2] == 1 and batch.y.dtype == torch.int64
        # Every set alternates, so that the first texts of each are of both classes.
        assert batch.y.bincount().tolist() == [len(part) // 2] * 2 and batch.y[:4].unique().numel() == 2
        rows = zip(batch.x.squeeze(-1), batch.lengths, batch.y, strict=True)
        seen.append([(tuple(known[i] for i in row[:count].tolist()), int(label)) for row, count, label in rows])
    assert sorted(seen[0] + seen[1]) == sorted(published["train"]) and sorted(seen[2]) == sorted(published["test"])
    # The same for every seed, also where the folder itself is given.
    again = tasks.get("imdb", data_dir=str(folder / "aclImdb")).splits(7)
    for one, other in zip((train, validation, test), again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:], other[:], strict=True) if a is not None)
    assert task.length == max(part[:].x.shape[1] for part in (train, validation, test))
    short = train[torch.tensor([0])]
    assert short.x.shape[1] == int(short.lengths[0])


def test_the_vocabulary_is_that_of_the_training_texts_alone(folder):
    whole = tasks.get("imdb", data_dir=str(folder))
    counts = {}
    for text in seen_in(whole, 0):
        for word in text:
            counts[word] = counts.get(word, 0) + 1
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    assert whole.words == expected and whole.tokens == len(expected) + 1
    task = tasks.get("imdb", data_dir=str(folder), vocabulary=5)
    assert task.words == expected[:5] and task.tokens == 6
    for part in range(3):
        texts = [[word if word in expected[:5] else "?" for word in text] for text in seen_in(whole, part)]
        assert texts == seen_in(task, part)
    text = " ".join(["zebra", *expected[:6]])
    assert task.numbers(text) == [0, 1, 2, 3, 4, 5, 0]


def seen_in(task, part):
    batch, known = batch_of(task.splits()[part], slice(None)), ["?", *task.words]
    return [
        [known[i] for i in row[:count].tolist()]
        for row, count in zip(batch.x.squeeze(-1), batch.lengths.tolist(), strict=True)
    ]


def test_words_that_only_the_test_texts_have_are_unknown(tmp_path):
    write(tmp_path, count=4)
    (tmp_path / "aclImdb" / "test" / "pos" / "0_9.txt").write_text("zebra the")
    task = tasks.get("imdb", data_dir=str(tmp_path))
    assert "zebra" not in task.words
    assert ["?", "the"] in seen_in(task, 2)


def test_texts_are_cut_where_it_is_asked_for_and_that_is_said(folder):
    whole, task = (tasks.get("imdb", data_dir=str(folder), max_length=most) for most in (0, 6))
    longer = 0
    for part in range(3):
        assert seen_in(task, part) == [text[:6] for text in seen_in(whole, part)]
        longer += sum(len(text) > 6 for text in seen_in(whole, part))
    assert task.length == 6 and task.tokens == whole.tokens and len(task.numbers("the film " * 9)) == 6
    assert task.notices[1] == f"{longer} of 160 texts are longer than --max-length, of which the beginning is read"
    few = "IMDB with 80 of 25,000 training and 80 of 25,000 test texts: figures are not comparable with published ones"
    assert [task.notices[0]] == whole.notices == [few]


def test_naive_bayes_is_what_the_counts_say(folder):
    task = tasks.get("imdb", data_dir=str(folder), vocabulary=20)
    train, labels = seen_in(task, 0), batch_of(task.splits()[0], slice(None)).y.tolist()
    names = ["?", *task.words]
    counts = np.ones((2, len(names)))
    for text, label in zip(train, labels, strict=True):
        for word in text:
            counts[label, names.index(word)] += 1
    chances = counts / counts.sum(1, keepdims=True)
    for part in range(3):
        joint = np.array(
            [[np.prod([row[names.index(word)] for word in text]) for row in chances] for text in seen_in(task, part)]
        )
        expected = joint / joint.sum(1, keepdims=True)
        np.testing.assert_allclose(task.guesses(part)["naive Bayes"].exp(), expected, rtol=1e-4, atol=1e-7)


def test_vectors_of_a_file_are_what_training_begins_with(folder, tmp_path):
    size, lines = 3, ["the 0.5 -1 2e0", "superb 1 2 3", "the 9 9 9", "zebra 4 5 6", "na\u00efve 7 8 9"]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vectors.txt").write_text("superb 4 5 6\n")
    options = {"embedding_size": size, "vectors": str(tmp_path / "vectors.txt")}

    def begun(**task_options):
        config = RunConfig(task="imdb", data_dir=str(folder), task_options={"embedding_size": size, **task_options})
        task = make_task(config)
        return task, build(config, task)

    task, model = begun(**options)
    other, drawn = begun()
    weight, expected = model.embedding.weight.detach(), drawn.embedding.weight.detach().clone()
    expected[0] = 0
    expected[1 + task.words.index("the")] = torch.tensor([0.5, -1, 2])
    expected[1 + task.words.index("superb")] = torch.tensor([1.0, 2, 3])
    assert torch.equal(weight, expected) and model.embedding.weight.requires_grad
    # All else is drawn as without them.
    assert all(
        torch.equal(a, b)
        for (name, a), b in zip(model.named_parameters(), drawn.parameters(), strict=True)
        if "emb" not in name
    )
    inside = begun(vectors="vectors.txt")[1].embedding.weight
    assert inside[1 + other.words.index("superb")].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("the 1 2\n", ["line 1 has 2 numbers", "--embedding-size is 3"]),
        ("superb 1 2 3\nthe 1 x 3\n", ["line 2 holds no vector"]),
        ("the 1 2 nan\n", ["line 1", "not finite"]),
        ("zebra 1 2 3\n", ["a vector for none of the"]),
        ("", ["a vector for none of the"]),
        (b"\xff\xfe the", ["no text in UTF-8"]),
        (None, ["cannot be read", "--vectors"]),
    ],
)
def test_what_is_no_file_of_vectors_is_said(content, said, folder, tmp_path, one_line):
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    task = tasks.get("imdb", data_dir=str(folder), embedding_size=3, vectors=str(path))
    with pytest.raises(InputError) as caught:
        task.embedded(torch.zeros(task.tokens, 3))
    one_line(caught, path, *said)


def test_two_epochs_on_the_command_line_tell_the_classes_apart(tmp_path, capsys):
    write(tmp_path, count=150)
    root = tmp_path / "runs"
    common = ["--task", "imdb", "--data-dir", tmp_path, "--embedding-size", 8, "--threads", 1, "--root", root]
    learnt = ["--model", "gru", "--hidden-size", 16, "--lr", 0.05, "--batch-size", 8, "--epochs", 2]
    learnt += ["--schedule", "constant", "--readout", "mean"]
    assert command("train", *common, *learnt, "--embedding-dropout", 0.1, "--name", "a") == 0
    assert "figures are not comparable" in capsys.readouterr().err
    result = json.loads((root / "a" / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.9
    assert result["baselines"]["naive Bayes"]["accuracy"] > 0.9
    loaded = experiments.load(root / "a")
    assert loaded.model.embedding.tokens == loaded.task.tokens and loaded.model.embedding.dropout == 0.1
    for text, label in (("A superb film.", 1), ("the plot was awful", 0)):
        assert loaded.model.predict(None, loaded.task.numbers(text)).argmax() == label
    assert command("evaluate", root / "a") == 0
    assert f"{100 * result['test']['accuracy']:.2f}%" in capsys.readouterr().out

    # Other texts give other numbers to words.
    path = sorted((tmp_path / "aclImdb" / "train" / "neg").glob("*.txt"))
    for each in path:
        each.write_text(each.read_text().replace("the", "zebra") + " zebra" * 3)
    assert command("evaluate", root / "a") == 2
    assert "gives other data than in the training" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    config = RunConfig(
        task="imdb",
        data_dir=str(folder),
        task_options={"embedding_size": 4},
        model_options={"hidden_size": 3, "dt": 0.5},
        epochs=1,
        threads=1,
    )
    root = tmp_path_factory.mktemp("runs")
    training.train(config, root=root, name="a", progress=False)
    return root / "a"


def test_a_run_is_compared_and_exported_with_its_words(trained, capsys, tmp_path):
    assert command("compare", trained, "--no-figures", "--solvers", "rk4", "--samples", 8) == 0
    assert "rk4" in capsys.readouterr().out
    assert command("export", trained, tmp_path / "model") == 0
    task = experiments.load(trained).task
    with safe_open(tmp_path / "model", "pt") as file:
        assert json.loads(file.metadata()["words"]) == task.words
    assert neuralosc.load(tmp_path / "model").predict(None, task.numbers("a film")).shape == (2,)
    assert command("predict", trained, trained / "result.json") == 2
    assert "no file has its columns" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_studied_and_reported(trained, capsys):
    assert command("report", trained) == 0
    assert command("study", trained, "--parts", "gradients,lyapunov,robustness,controls", "--budget", 4) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "gradients: The gradient" in said
    assert "robustness: the inputs of this model are tokens, whose numbers cannot be disturbed" in said


@pytest.mark.slow
def test_a_sweep_takes_it(folder, tmp_path, capsys):
    pytest.importorskip("optuna")
    fixed = ["--task", "imdb", "--data-dir", folder, "--embedding-size", 4, "--hidden-size", 3, "--model", "cornn"]
    arguments = ["--epochs", 1, "--threads", 1, "--trials", 2, "--root", tmp_path]
    assert command("sweep", *fixed, *arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--precision", "64"], ["--precision", "bf16-mixed"], ["--model", "lstm"], ["--model", "linoss"]]
)
def test_precisions_and_networks(arguments, folder, tmp_path):
    common = ["--task", "imdb", "--data-dir", folder, "--embedding-size", 4, "--hidden-size", 4, "--epochs", 1]
    assert command("train", *common, "--threads", 1, "--root", tmp_path, *arguments, "--name", "a") == 0
    assert experiments.load(tmp_path / "a").model.embedding is not None


def test_the_archive_is_fetched_and_unpacked(tmp_path, monkeypatch):
    write(tmp_path / "published", count=5)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(tmp_path / "published" / "aclImdb", "aclImdb")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / imdb.ARCHIVE).write_bytes(content.getvalue())
    monkeypatch.setenv("NEURALOSC_IMDB", str(cache))
    digest = hashlib.md5(content.getvalue(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(imdb, "CHECKSUMS", {imdb.ARCHIVE: f"md5:{digest}"})
    # No network is needed for what is there.
    assert [len(part) for part in tasks.get("imdb").splits()] == [6, 4, 10]


def test_what_is_missing_or_damaged_is_said(tmp_path, one_line):
    def refused(*said):
        with pytest.raises(InputError) as caught:
            tasks.get("imdb", data_dir=str(tmp_path)).splits()
        one_line(caught, *said)

    refused("train", "neg has no texts", "give --data-dir the folder aclImdb")
    write(tmp_path, count=1)
    refused("2 training texts, too few")
    path = tmp_path / "aclImdb" / "test" / "pos" / "0_9.txt"
    path.write_bytes(b"good \xff")
    refused(path, "no text in UTF-8")
    path.write_text("<br />")
    refused(path, "has no words")
    path.unlink()
    path.mkdir()
    refused(path, "cannot be read")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vocabulary": 0}, "'vocabulary' is 0"),
        ({"max_length": -1}, "'max_length' is -1"),
        ({"embedding_size": 1.5}, "'embedding_size' is 1.5"),
        ({"embedding_dropout": 1}, "embedding_dropout is 1"),
        ({"vectors": 3}, "'vectors' is 3"),
    ],
)
def test_options_that_it_cannot_use_are_refused(options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        tasks.get("imdb", **options)


def test_a_time_that_is_no_feature_of_a_token_is_refused(folder, monkeypatch):
    config = RunConfig(task="imdb", data_dir=str(folder), time="input")
    monkeypatch.setattr(imdb.IMDB, "irregular", True)
    with pytest.raises(InputError, match="has tokens, beside which no feature stands"):
        build(config, make_task(config))
