"""A folder that cannot be written, and a disk that gets full."""

import errno
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from test_checkpoints import WHOLE_STEPS, make_args, make_problems, make_trainer

from ccpo import SharedCredit
from ccpo.evaluation.report import write_report
from ccpo.training.checkpoints import find_defects, find_last_checkpoint
from ccpo.training.checks import check_arguments
from ccpo.training.output_dir import check_output_dir, writing
from ccpo.training.run_record import append


def test_a_folder_that_is_a_file_is_refused_before_a_model_loads(tmp_path, outcome):
    file = tmp_path / "file"
    file.touch()
    for given in (file, file / "below"):
        with pytest.raises(ValueError, match=rf"`output_dir='{given}'`: {file} is a file. Name a folder, or move"):
            check_output_dir(make_args(given))
    from ccpo import ThinkSolve

    args = make_args(file)
    with pytest.raises(ValueError, match="`output_dir=.* is a file"):
        check_arguments({"thinker": "nowhere"}, [SharedCredit(outcome)], args, make_problems(), ThinkSolve(), None)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="link is a file"):
        check_output_dir(make_args(link))


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path):
    check_output_dir(make_args(tmp_path / "deep" / "run"))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_refused(number, tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match=rf"`output_dir=.*cannot be written \({os.strerror(number)}\). Name a folder"):
        check_output_dir(make_args(tmp_path))


def test_only_what_failed_to_write_is_named(tmp_path):
    args = make_args(tmp_path)
    with pytest.raises(RuntimeError, match="^out of memory$"), writing(args, "the models"):
        raise RuntimeError("out of memory")
    with pytest.raises(FileNotFoundError), writing(args, "the models"):
        open(tmp_path / "no" / "file")
    for error in (
        OSError(errno.ENOSPC, "x"),
        RuntimeError("[enforce fail at inline_container.cc:668] unexpected pos"),
    ):
        with pytest.raises(OSError, match="`output_dir=.*`: the models could not be written.*Make room"):
            with writing(args, "the models"):
                raise error


@pytest.fixture
def small_disk(tmp_path):
    """A small disk, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = 3_000_000
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_gets_full_leaves_what_was_complete(small_disk, model_dirs, tmp_path):
    run = small_disk / "run"
    whole = make_trainer(model_dirs, make_args(tmp_path / "whole"))
    whole.train()
    one = sum(file.stat().st_size for file in (tmp_path / "whole" / "checkpoint-3").rglob("*") if file.is_file())
    trainer = make_trainer(model_dirs, make_args(run, save_steps=1))
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - int(2.6 * one)))
    with pytest.raises(OSError, match=rf"`output_dir='{run}'`: checkpoint-3 could not be written") as raised:
        trainer.train()
    assert "\n" not in str(raised.value) and "--resume_from_checkpoint true" in str(raised.value)
    assert find_defects(run / "checkpoint-3") and find_last_checkpoint(run) == run / "checkpoint-2"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][:2] == [1, 2]
    assert write_report(run, tmp_path / "report.html").stat().st_size > 30_000
    (small_disk / "ballast").unlink()
    resumed = make_trainer(model_dirs, make_args(run, save_strategy="no"))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == WHOLE_STEPS
    assert all(map(lambda a, b: (a == b).all(), resumed.model.parameters(), whole.model.parameters()))


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path):
    """The kernel's limit on a file's size stands for the disk's: the first bytes of the line still fit."""
    file = tmp_path / "metrics.jsonl"
    append(file, b'{"step": 1}\n')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append(file, b'{"step": 2}\n')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == b'{"step": 1}\n'
    append(file, b'{"step": 2}\n')
    assert Path(file).read_bytes() == b'{"step": 1}\n{"step": 2}\n'
