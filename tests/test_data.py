"""Any dataset by configuration alone."""

import json
import math
from pathlib import Path

import pytest
from datasets import Dataset

from ccpo import MathVerifier
from ccpo.data import final_answer, load_problems

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
    path.write_text(json.dumps({"prompt": "old", "solution": "old", "q": 7, "a": 8.5}) + "\n")
    row = load_problems(str(path), problem_column="q", solution_column="a", conversational=False)[0]
    assert row == {"prompt": "7", "solution": "8.5"}
    row = load_problems(str(path), problem_column="prompt", solution_column="solution", conversational=False)[0]
    assert row == {"prompt": "old", "solution": "old", "q": 7, "a": 8.5}


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
    with pytest.raises(ValueError, match=r"`dataset_name='.*rows.txt'` has an unknown format; known: \['.csv'"):
        load_problems(str(tmp_path / "rows.txt"), **GSM8K)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", ""), ("b.jsonl", "\n"), ("c.json", "[]"), ("d.jsonl", '{"question"\n')]
)
def test_file_without_readable_rows(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"`dataset_name='.*{name}'` has no rows that can be read.*Check the file"):
        load_problems(str(tmp_path / name), **GSM8K)


def test_empty_split(monkeypatch):
    empty = Dataset.from_dict({"question": [], "answer": []})
    monkeypatch.setattr("ccpo.data.load_dataset", lambda *args, **kwargs: empty)
    with pytest.raises(
        ValueError, match="`dataset_name='openai/gsm8k'` has no rows in split 'tset'. Check .* the split"
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
