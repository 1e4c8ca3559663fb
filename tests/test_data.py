"""Any dataset by configuration alone."""

import bz2
import datetime
import gzip
import json
import logging
import lzma
import math
from decimal import Decimal
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from ccpo import MathVerifier
from ccpo.data import final_answer, has_splits, load_problems

ROWS = [
    {"question": "1+1?", "answer": "One and one.\n#### 2", "level": 3},
    {"question": "2+2?", "answer": 4, "level": 5},
]
GSM8K = {"problem_column": "question", "solution_column": "answer"}
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, rows):
    dataset = Dataset.from_list([{**row, "answer": str(row["answer"])} for row in rows])
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in dataset))
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(dataset)))
    elif path.suffix == ".parquet":
        dataset.to_parquet(path)
    else:
        dataset.to_csv(path)
    return str(path)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("She has 3 + 4 = <<3+4=7>>7.\n#### 7", "7"),
        ("#### 1,200 ", "1,200"),
        ("a #### 1\n#### 2", "2"),  # the last one
        ("  \\frac{1}{2} ", "\\frac{1}{2}"),
        ("so \\boxed{5}", "so \\boxed{5}"),
        ("a ### b", "a ### b"),
        ("", ""),
    ],
)
def test_final_answer(solution, answer):
    assert final_answer(solution) == answer


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_local_file_of_every_format(suffix, tmp_path):
    dataset = load_problems(write(tmp_path / f"rows{suffix}", ROWS), **GSM8K)
    assert sorted(dataset.column_names) == ["level", "prompt", "solution"]
    assert dataset["prompt"] == [[{"role": "user", "content": row["question"]}] for row in ROWS]
    assert list(dataset["solution"]) == ["2", "4"]
    assert list(dataset["level"]) == [3, 5]  # the other columns stay


def test_text_prompts_and_first_rows(tmp_path):
    name = write(tmp_path / "rows.jsonl", ROWS)
    dataset = load_problems(name, **GSM8K, conversational=False, max_rows=1)
    assert list(dataset["prompt"]) == ["1+1?"]
    assert len(load_problems(name, **GSM8K, max_rows=99)) == 2


def test_own_prompt_and_solution_columns_give_way(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "old", "solution": "old", "q": "7*1", "a": 8.5}) + "\n")
    row = load_problems(str(path), problem_column="q", solution_column="a", conversational=False)[0]
    assert row == {"prompt": "7*1", "solution": "8.5"}
    row = load_problems(str(path), problem_column="prompt", solution_column="solution", conversational=False)[0]
    assert row == {"prompt": "old", "solution": "old", "q": "7*1", "a": 8.5}


def test_missing_gold_answer_stays_missing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1+1?", "answer": null}\n{"question": "2+2?", "answer": "4"}\n')
    dataset = load_problems(str(path), **GSM8K)
    assert list(dataset["solution"]) == [None, "4"]
    scores = MathVerifier(num_workers=1).score(gold=list(dataset["solution"]), prediction=["None", "\\boxed{4}"])
    assert math.isnan(scores[0]) and scores[1] == 1


def test_hub_name_split_and_configuration_are_passed_on(monkeypatch):
    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        return Dataset.from_list([{"question": "1+1?", "answer": "#### 2"}])

    monkeypatch.setattr("ccpo.data.load_dataset", load_dataset)
    dataset = load_problems("openai/gsm8k", config="main", split="test", **GSM8K)
    assert calls == [("openai/gsm8k", "main", "test")] and list(dataset["solution"]) == ["2"]


@pytest.mark.parametrize("field", ["problem_column", "solution_column"])
def test_missing_column(field, tmp_path):
    columns = GSM8K | {field: "nope"}
    with pytest.raises(ValueError, match=rf"`{field}='nope'` is not a column of .*'answer'.*Set `{field}`"):
        load_problems(write(tmp_path / "rows.jsonl", ROWS), **columns)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match="`dataset_name='nowhere.jsonl'` names a local file.*Check the path"):
        load_problems("nowhere.jsonl", **GSM8K)


def test_unknown_format(tmp_path):
    (tmp_path / "rows.txt").write_text("1+1?\n")
    with pytest.raises(
        ValueError, match=r"`dataset_name='.*rows.txt'` is a file of an unknown format. Known are \['.csv'"
    ):
        load_problems(str(tmp_path / "rows.txt"), **GSM8K)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("b.jsonl", "\n"), ("c.json", "[]"), ("d.jsonl", '{"question"\n')]
)
def test_file_without_readable_rows(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    message = rf"`dataset_name='.*{name}'` has no rows that can be read.*Check the file. \(.+\)"
    with pytest.raises(ValueError, match=message):
        load_problems(str(tmp_path / name), **GSM8K)


def test_empty_split(monkeypatch):
    empty = Dataset.from_dict({"question": [], "answer": []})
    monkeypatch.setattr("ccpo.data.load_dataset", lambda *args, **kwargs: empty)
    with pytest.raises(
        ValueError, match="`dataset_name='openai/gsm8k'` has no rows in the split 'tset'. Check .* the split"
    ):
        load_problems("openai/gsm8k", split="tset", **GSM8K)


def test_null_problem(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": null, "answer": "1"}\n{"question": "2+2?", "answer": "4"}\n')
    with pytest.raises(ValueError, match="`problem_column='question'` is null in 1 of 2 rows.*Remove those rows"):
        load_problems(str(tmp_path / "rows.jsonl"), **GSM8K)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("file", "problem_column", "rows", "first"),
    [
        ("gsm8k_train.jsonl", "question", 7473, "72"),
        ("math500.jsonl", "problem", 500, "\\left( 3, \\frac{\\pi}{2} \\right)"),
    ],
)
def test_real_data(file, problem_column, rows, first):
    dataset = load_problems(str(SHARED / file), problem_column=problem_column, solution_column="answer")
    assert len(dataset) == rows and dataset[0]["solution"] == first
    assert all(dataset["solution"])


# ---- What a cell becomes ----

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "It is \\boxed{2}."},
]


def saved(tmp_path, rows, features=None):
    """A parquet file, which keeps the columns' types."""
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    return str(tmp_path / "rows.parquet")


def golds(name, column="answer"):
    return list(load_problems(name, problem_column="question", solution_column=column)["solution"])


@pytest.mark.parametrize(
    ("cells", "value", "text"),
    [
        ([4, -3, 10**18], Value("int64"), ["4", "-3", "1" + "0" * 18]),
        ([4.0, 0.1, 1e-5, 1e22, math.nan], Value("float64"), ["4", "0.1", "0.00001", "1" + "0" * 22, None]),
        ([0.1, 2.5], Value("float32"), ["0.1", "2.5"]),
        ([Decimal("2.50"), Decimal("3.00")], Value("decimal128(5, 2)"), ["2.50", "3"]),
        ([0, 1, -1], ClassLabel(names=["A", "B"]), ["A", "B", None]),
        ([["4"], ["#### 5"]], List(Value("string")), ["4", "5"]),
        ([[[4]]], List(List(Value("int64"))), ["4"]),
    ],
    ids=["int", "float", "float32", "decimal", "label", "list of one", "nested list of one"],
)
def test_golds_by_type(cells, value, text, tmp_path):
    rows = [{"question": "Q?", "answer": cell} for cell in cells]
    assert golds(saved(tmp_path, rows, Features({"question": Value("string"), "answer": value}))) == text


def test_a_csv_keeps_its_answers_as_written(tmp_path):
    (tmp_path / "rows.csv").write_text('question,answer\na,0.10\nb,\nc,007\nd,"1,200"\n')
    assert golds(str(tmp_path / "rows.csv")) == ["0.10", None, "007", "1,200"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["2", "3"], "row 1 of .* holds a list of 2, .*'2', '3'.*Give one answer: text or a number"),
        ([], "row 1 of .* holds a list of 0"),
        (
            {"ground_truth": "4", "style": "rule"},
            r"row 1 of .* holds several fields. Name one of them, with a dot: \['answer.ground_truth', "
            r"'answer.style'\]",
        ),
        ([{"ground_truth": "4"}], r"holds several fields. Name one of them, with a dot: \['answer.ground_truth'\]"),
        (True, "row 1 of .* holds a bool, True. Give text or a number"),
        (
            datetime.date(2024, 1, 5),
            "holds a date, .*[(]In a json file, a text that looks like a date is read as a date; in a csv",
        ),
    ],
)
def test_golds_that_are_none(answer, message, tmp_path):
    with pytest.raises(ValueError, match=rf"`solution_column='answer'`: .*{message}"):
        golds(saved(tmp_path, [{"question": "Q?", "answer": None}, {"question": "Q?", "answer": answer}]))


def test_a_dotted_column_reaches_a_nested_field(tmp_path):
    rows = [{"question": "Q?", "reward_model": {"ground_truth": str(i), "more": [{"a": i}]}} for i in range(2)]
    rows += [{"question": "Q?", "reward_model": None}]
    name = saved(tmp_path, rows)
    assert golds(name, "reward_model.ground_truth") == ["0", "1", None]
    assert golds(name, "reward_model.more.a") == ["0", "1", None]  # a list of one on the way
    with pytest.raises(ValueError, match=r"row 0 of .* has the fields \['ground_truth', 'more'\], not 'gold'"):
        golds(name, "reward_model.gold")
    with pytest.raises(ValueError, match="row 0 of .* has a str, not 'x'. Set `solution_column`"):
        golds(name, "question.x")
    assert golds(saved(tmp_path, [{"question": "Q?", "a.b": "7", "a": {"b": "8"}}]), "a.b") == ["7"]


def test_messages_are_the_prompt_and_never_hold_the_answer(tmp_path, caplog):
    rows = [{"q": MESSAGES, "answer": "2"}, {"q": MESSAGES[:2], "answer": "2"}]
    rows += [{"q": [*MESSAGES, {"role": "tool", "content": "2"}, MESSAGES[2]], "answer": "2"}]
    with caplog.at_level(logging.WARNING):
        dataset = load_problems(saved(tmp_path, rows), problem_column="q", solution_column="answer")
    assert dataset["prompt"] == [MESSAGES[:2]] * 3
    (record,) = [r.getMessage() for r in caplog.records if r.name == "ccpo.data"]
    assert "`problem_column='q'`: the assistant's messages after the problem were removed in 2 of 3 rows" in record
    shots = [*MESSAGES[1:], {"role": "user", "content": "2+2?"}]  # a few-shot turn stays: it is another problem's
    name = saved(tmp_path, [{"q": shots, "answer": "4"}])
    assert load_problems(name, problem_column="q", solution_column="answer")["prompt"][0] == shots


def test_messages_as_text(tmp_path):
    name = saved(tmp_path, [{"q": MESSAGES[1:], "answer": "2"}, {"q": MESSAGES[1:2], "answer": "2"}])
    columns = {"problem_column": "q", "solution_column": "answer", "conversational": False}
    assert list(load_problems(name, **columns)["prompt"]) == ["1+1?"] * 2
    with pytest.raises(ValueError, match="`problem_column='q'`: row 0 .* holds 2 messages.*Set `conversational=True`"):
        load_problems(saved(tmp_path, [{"q": MESSAGES, "answer": "2"}]), **columns)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (7, "holds an int, 7. Give one text, or a list of chat messages"),
        (["a", "b"], "holds a list of 2, .*Give one text, or a list of chat messages"),
        ({"text": "1+1?"}, r"holds several fields. Name one of them, with a dot: \['question.text'\]"),
        (
            [{"from": "human", "value": "1+1?"}],
            "where a message is expected, whose `role` and `content`.*maybe_convert_to_chatml",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], "where a message .*both text"),
        (
            MESSAGES[:1],
            r"messages of the roles \['system'\]. Before the assistant's answer, the last message must be the user's",
        ),
        (MESSAGES[2:], r"messages of the roles \['assistant'\]"),
        (json.dumps(MESSAGES), "holds chat messages written as one text, .*Parse them first, e.g. with json.loads"),
        (str(MESSAGES), "holds chat messages written as one text"),
        (str(MESSAGES[1]), "holds chat messages written as one text"),
        (json.dumps({"messages": MESSAGES}), "holds chat messages written as one text"),
        (str([{"id": 3, "from": "human", "value": "1+1?"}]), "holds chat messages written as one text"),
        (" ", "is empty in 1 of 1 rows of .* Remove those rows"),
        ([{"role": "user", "content": ""}], "is empty in 1 of 1 rows"),
    ],
)
def test_problems_that_are_none(problem, message, tmp_path):
    with pytest.raises(ValueError, match=rf"`problem_column='question'.*{message}"):
        golds(saved(tmp_path, [{"question": problem, "answer": "2"}]))


def test_a_column_of_problems_is_not_that_of_answers(tmp_path):
    with pytest.raises(
        ValueError, match="`problem_column` and `solution_column` are both 'answer', so the prompt would"
    ):
        load_problems(write(tmp_path / "a.jsonl", ROWS), problem_column="answer", solution_column="answer")


def test_columns_that_trl_takes_for_the_prompt_go(tmp_path):
    name = saved(tmp_path, [{"question": "1+1?", "answer": "2", "completion": "2", "messages": MESSAGES, "level": 1}])
    assert load_problems(name, **GSM8K).column_names == ["level", "prompt", "solution"]


# ---- Files and folders ----


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("ROWS.JSONL", None),
        ("rows.jsonl.gz", gzip.compress),
        ("Rows.v2.JSON.BZ2", bz2.compress),
        ("rows.csv.xz", lzma.compress),
    ],
)
def test_compressed_and_upper_case_names(name, pack, tmp_path):
    path = tmp_path / f"plain{'.csv' if 'csv' in name else '.jsonl'}"
    content = Path(write(path, ROWS)).read_bytes()
    (tmp_path / name).write_bytes(content if pack is None else pack(content))
    assert golds(str(tmp_path / name)) == ["2", "4"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.jsonl.zst", "needs the package 'zstandard'. Install it .* or unpack"),
        ("rows.csv.lz4", "needs the package 'lz4'"),
        ("rows.parquet.gz", "` is a compressed parquet file, .*. Unpack it to 'rows.parquet'"),
        ("rows.jsonl.gz", "has no rows that can be read as .jsonl.gz"),  # broken off
    ],
)
def test_compressed_files_that_cannot_be_read(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr("ccpo.data.find_spec", lambda package: None)
    (tmp_path / name).write_bytes(gzip.compress(b'{"question": "a", "answer": "1"}')[:20])
    with pytest.raises(ValueError, match=f"`dataset_name='.*{name}'.*{message}"):
        golds(str(tmp_path / name))


def test_folders_of_save_to_disk(tmp_path):
    train, test = (Dataset.from_dict({"question": ["1+1?"], "answer": [gold]}) for gold in ("2", "3"))
    train.save_to_disk(tmp_path / "one")
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    assert golds(str(tmp_path / "one")) == golds(str(tmp_path / "two")) == ["2"]
    assert list(load_problems(str(tmp_path / "two"), split="test", **GSM8K)["solution"]) == ["3"]
    with pytest.raises(ValueError, match=r"two'` has no split 'dev'. Its splits are \['train', 'test'\]. Name one"):
        load_problems(str(tmp_path / "two"), split="dev", **GSM8K)
    with pytest.raises(ValueError, match="one'` was saved as one dataset without splits.*Use `max_train_rows`"):
        load_problems(str(tmp_path / "one"), split="train[:1]", **GSM8K)
    assert [has_splits(str(tmp_path / name)) for name in ("one", "two", "nowhere")] == [False, True, True]


def test_a_slice_of_a_file(tmp_path, caplog):
    name = write(tmp_path / "rows.jsonl", ROWS)
    assert list(load_problems(name, split="test[1:]", **GSM8K)["solution"]) == ["4"]
    with caplog.at_level(logging.WARNING):
        load_problems(name, config="main", **GSM8K)
    assert "`dataset_config='main'` has no effect: it is for datasets of the Hub, " in caplog.text
    assert not has_splits(name)


@pytest.mark.parametrize("rows", [0, -1])
def test_max_rows(rows, tmp_path):
    with pytest.raises(ValueError, match=f"`max_train_rows` must be at least 1, got {rows}. Leave it out"):
        load_problems(write(tmp_path / "rows.jsonl", ROWS), **GSM8K, max_rows=rows)


def test_a_dataset_that_is_nowhere():
    with pytest.raises(ValueError, match="`dataset_name` is empty. Give"):
        load_problems("", **GSM8K)
    with pytest.raises(
        ValueError, match="`dataset_name='no/where'` .* could not be loaded. There is no such local file or"
    ):
        load_problems("no/where", **GSM8K)


def test_a_csv_keeps_its_problems_as_written(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n007,2024-01-05\n12,0.10\n")
    dataset = load_problems(str(path), problem_column="question", solution_column="answer", conversational=False)
    assert (dataset["prompt"][:], dataset["solution"][:]) == (["007", "12"], ["2024-01-05", "0.10"])


def test_a_problem_may_hold_json(tmp_path):
    text = 'Parse {"a": [1, 2]} and give the role of 2: {"role": "index"}'
    name = saved(tmp_path, [{"question": text, "answer": "1"}])
    assert load_problems(name, problem_column="question", solution_column="answer")["prompt"][0][0]["content"] == text
