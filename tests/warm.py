"""
A process that has imported everything and forks the processes of a run: two thirds of a short run's time are imports.

    python tests/warm.py

reads a JSON line for each run, {"spec": …, "environments": [{…} for each process], "output": a file, "timeout": …},
and answers with a line, the list of the processes' exit codes.
The forked processes are real ones: they meet over gloo, under DeepSpeed or FSDP2, as those of a launcher do.
"""

import json
import os
import signal
import sys
import time
import traceback

REPLIES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints is no reply

import canned  # noqa: E402
import deepspeed  # noqa: E402, F401  (imported for what it costs)


def run(spec: dict, environment: dict, output: str) -> None:
    """In the forked process: never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        os.environ.clear()
        os.environ.update(environment)
        canned.main(spec)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def codes_of(pids: list[int], timeout: float) -> list[int]:
    """The exit codes. When one has failed, or time is up, the others are killed: they would wait for it."""
    codes, end = {}, time.monotonic() + timeout
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (done := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(done[1])
        if any(codes.values()) or time.monotonic() > end:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
                    codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def main() -> None:
    print("ready", file=REPLIES, flush=True)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for environment in request["environments"]:
            pid = os.fork()
            if pid == 0:
                run(request["spec"], environment, request["output"])
            pids.append(pid)
        print(json.dumps(codes_of(pids, request["timeout"])), file=REPLIES, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
