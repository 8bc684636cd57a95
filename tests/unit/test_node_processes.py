"""What job scripts start on the nodes: supervised servers, waiting for them, and the preflight."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nemo_axpo.cli import main
from nemo_axpo.config.load import load_config
from nemo_axpo.launcher import wait_for
from nemo_axpo.launcher.preflight import RankReport, Ranks, mark_problems, path_problems, problems_of, run_preflight
from nemo_axpo.launcher.serve_node import Supervised, server_jobs, supervise

ONCE = "import os, sys, pathlib; p = pathlib.Path(sys.argv[1]); n = len(list(p.iterdir())); (p / str(n)).touch(); "


def test_a_server_that_ends_is_started_again_and_the_others_end_with_the_last_failure(tmp_path):
    failing = Supervised("failing", [sys.executable, "-c", ONCE + "sys.exit(5)", str(tmp_path)])
    waiting = Supervised("waiting", [sys.executable, "-c", "import signal; signal.pause()"])
    assert supervise([failing, waiting], max_restarts=2) == 5
    assert (failing.num_starts, len(list(tmp_path.iterdir()))) == (3, 3)
    assert waiting.process.returncode == -signal.SIGTERM and waiting.num_starts == 1


def test_sigterm_ends_all_of_them():
    jobs = [Supervised(str(n), [sys.executable, "-c", "import signal; signal.pause()"]) for n in range(2)]
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert supervise(jobs, max_restarts=0) == 0
    assert [job.process.returncode for job in jobs] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_servers_of_a_node_have_gpus_and_ports_of_their_own():
    options = argparse.Namespace(servers=2, gpus_each=2, first_gpu=4, first_port=8000, checkpoint="/m", dtype="bfloat16",
                                 max_model_len=100, max_num_seqs=8, gpu_memory_utilization=0.9)  # fmt: skip
    jobs = server_jobs(options, ["--enforce-eager"])
    assert [job.environment["CUDA_VISIBLE_DEVICES"] for job in jobs] == ["4,5", "6,7"]
    assert [job.command[job.command.index("--port") + 1] for job in jobs] == ["8000", "8001"]
    assert all(job.command[-3:] == ["--tensor-parallel-size", "2", "--enforce-eager"] for job in jobs)


class Health(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Health.asked += 1
        self.send_response(200 if Health.asked > 2 and self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *arguments):
        """Says nothing."""


@pytest.fixture
def server():
    Health.asked = 0
    with HTTPServer(("127.0.0.1", 0), Health) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_waiting_ends_when_the_server_is_well(server):
    assert wait_for.wait_for([server], timeout_s=20) == []
    assert Health.asked == 3


def test_waiting_ends_in_time_and_says_who_is_missing(server, capsys):
    absent = "http://127.0.0.1:9"
    assert wait_for.main(["--timeout-s", "0.5", server, absent]) == 1
    said = capsys.readouterr().err
    assert absent in said and f"{server}:" not in said


def test_a_problem_is_said_once_with_its_hosts():
    report = RankReport(0, "n1", ("no GPU",), {"torch": "2.13.0"})
    others = [
        RankReport(1, "n1", ("no GPU",), {"torch": "2.13.0"}),
        RankReport(2, "n2", ("no GPU",), {"torch": "2.12.0"}),
    ]
    assert problems_of([report, *others]) == [
        "n1, n2: no GPU",
        "every node has the same torch; got 2.12.0 on n2, 2.13.0 elsewhere: use one image on all nodes",
    ]


def test_mounts_that_are_not_there(tmp_path):
    config = load_config([f"model.path={tmp_path}"])
    assert "model.path is mounted" in next(path_problems(config, run_dir=tmp_path / "run"))
    (tmp_path / "config.json").touch()
    assert list(path_problems(config, run_dir=tmp_path / "a" / "b")) == []


def test_data_that_are_not_there(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "a.parquet").touch()
    there, absent = str(tmp_path / "*.parquet"), str(tmp_path / "images")
    words = ["data=files", f"model.path={tmp_path}", f"data.files=[{{path: {there}, image_root: {absent}}}, {{path: org/set}}]"]
    (said,) = path_problems(load_config(words), run_dir=tmp_path / "run")
    assert said.startswith(f"data.files[0].image_root can be read on every node; got {absent}: add its directory to mounts")
    (said,) = path_problems(load_config([f"model.path={tmp_path}", "sft.trajectories=[out/distill]"]), run_dir=tmp_path)
    assert f"sft.trajectories[0] can be read on every node; got out/distill, below {Path.cwd()}" in said


def test_this_machine_alone(tmp_path, capsys):
    assert main(["preflight", "--run-dir", str(tmp_path)]) == 0
    assert "1 rank, all well: " in capsys.readouterr().out
    assert main(["preflight", "device=cuda", "--run-dir", str(tmp_path)]) == 2
    assert "every rank of a node has a GPU of its own" in capsys.readouterr().err


@pytest.mark.slow  # two processes that load torch
def test_several_ranks_meet_and_sum(tmp_path, free_port):
    program = "import sys; from nemo_axpo.cli import main; sys.exit(main(sys.argv[1:]))"
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(free_port)}
        ranks.append(
            subprocess.Popen([sys.executable, "-c", program, "preflight", "--run-dir", str(tmp_path), "--timeout-s", "60"],
                             env={**os.environ, **place}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )  # fmt: skip
    said = [process.communicate(timeout=90) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert "preflight: 2 ranks, all well" in said[0][0] and said[1][0] == ""
    assert list(tmp_path.iterdir()) == []  # the first rank's mark is gone


@pytest.mark.slow  # two processes that load torch
def test_a_directory_that_nodes_do_not_share_is_said(tmp_path, free_port):
    """Another node's directory of the same name is played by a second name for the mark: there it is not."""
    program = (
        "import sys, pathlib; from nemo_axpo.launcher import preflight\n"
        "if sys.argv.pop() == '1': preflight.Path.exists = lambda path: not path.name.startswith('.preflight')\n"
        "from nemo_axpo.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(free_port)}
        words = ["preflight", "--run-dir", str(tmp_path), "--timeout-s", "60", str(rank)]
        ranks.append(subprocess.Popen([sys.executable, "-c", program, *words], env={**os.environ, **place},
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))  # fmt: skip
    said = [process.communicate(timeout=90) for process in ranks]
    assert [process.returncode for process in ranks] == [2, 0], said
    assert "the run directory is the same one on every node" in said[0][1]


def test_a_mark_that_is_not_there_is_said_once_for_all_its_hosts(tmp_path):
    mark = tmp_path / "mark"
    assert [*mark_problems(tmp_path, mark=None)] == []
    (problem,) = mark_problems(tmp_path, mark=mark)
    mark.touch()
    assert [*mark_problems(tmp_path, mark=mark)] == []
    (said,) = problems_of([RankReport(0, "a", (), {}), *(RankReport(n, "b", (problem,), {}) for n in (1, 2))])
    assert said.startswith("b: the run directory is the same one on every node; got")


def test_servers_are_asked_without_the_proxy_of_the_environment(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    Health.asked = 2
    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert wait_for.wait_for([f"http://127.0.0.1:{server.server_port}"], timeout_s=5.0) == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_ranks_that_do_not_come_are_missed(tmp_path, free_port):
    with pytest.raises(Exception, match=r"(?i)time"):
        run_preflight(load_config(), run_dir=tmp_path, ranks=Ranks(0, 0, 2, port=free_port), timeout_s=1.0)


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
