"""Whose directory it is, and what a resumed run finds in it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from nemo_axpo.config.load import load_config, load_saved_config
from nemo_axpo.errors import RunDirectoryError
from nemo_axpo.metrics_log import MetricsLog, read_metrics
from nemo_axpo.run_directory import changed_keys, check_same_run, open_run_directory, remove_run


def config_in(path, *overrides):
    return load_config(overrides, settings={"output_dir": str(path)})


def start(path, *overrides):
    """A run that has logged one step."""
    with open_run_directory(config_in(path, *overrides)) as run, MetricsLog(run.metrics_path) as log:
        log.log(1, {})


def refusal(config, **options):
    with pytest.raises(RunDirectoryError) as caught, open_run_directory(config, **options):
        pass
    return str(caught.value)


def test_a_new_directory_gets_the_resolved_config(tmp_path):
    config = config_in(tmp_path / "a" / "b", "algorithm=grpo")
    with open_run_directory(config) as run:
        assert load_saved_config(run.config_path) == config


def test_the_same_run_needs_resume(tmp_path):
    start(tmp_path)
    message = refusal(config_in(tmp_path))
    assert "already holds this run" in message and "--resume" in message
    with open_run_directory(config_in(tmp_path), resume=True):
        pass


def test_resume_starts_a_run_where_there_is_none(tmp_path):
    with open_run_directory(config_in(tmp_path / "new"), resume=True) as run:
        assert run.config_path.exists()


def test_a_start_that_logged_nothing_may_be_repeated(tmp_path):
    for _ in range(2):
        with open_run_directory(config_in(tmp_path)):
            pass


def test_a_start_that_failed_makes_room_for_the_corrected_settings(tmp_path):
    with pytest.raises(ValueError), open_run_directory(config_in(tmp_path, "seed=1")):
        raise ValueError
    with open_run_directory(config_in(tmp_path, "seed=2")) as run:
        assert load_saved_config(run.config_path).seed == 2


def test_a_run_that_failed_later_keeps_its_config(tmp_path):
    with pytest.raises(ValueError), open_run_directory(config_in(tmp_path, "seed=1")) as run:
        run.write_evaluation("initial", {})
        raise ValueError
    assert "seed: 1 -> 2" in refusal(config_in(tmp_path, "seed=2"))


@pytest.mark.parametrize("resume", [False, True])
def test_another_run_is_refused_with_the_key_that_differs(tmp_path, resume):
    start(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    message = refusal(config_in(tmp_path, "algorithm=grpo", "seed=5"), resume=resume)
    assert "must not hold another run" in message and "seed: 0 -> 5" in message
    assert "algorithm.name: axpo -> grpo" in message and "choose another --output-dir" in message
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_longer_run_may_resume(tmp_path):
    start(tmp_path)
    longer = config_in(tmp_path, "train.num_steps=999", "logging.tensorboard=false")
    with open_run_directory(longer, resume=True) as run:
        assert load_saved_config(run.config_path).train.num_steps == 999


def test_a_run_resumes_with_servers_on_other_hosts_and_other_layers(tmp_path):
    served = ("engine=trtllm", "engine.servers=[http://a:8000]")
    with open_run_directory(config_in(tmp_path, *served)) as run:
        run.write_evaluation("initial", {})
    moved = ("engine=trtllm", "engine.servers=[http://b:8000,http://c:8000]", "engine.sync.timeout_s=60")
    with open_run_directory(config_in(tmp_path, *moved, "actor.transformer_impl=local", "actor.packing=padded"), resume=True) as run:
        assert load_saved_config(run.config_path).engine.servers == ("http://b:8000", "http://c:8000")
    assert "engine.name: trtllm -> hf" in refusal(config_in(tmp_path), resume=True)


def test_a_directory_with_other_files_stays_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "holds thesis.tex" in refusal(config_in(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "must be a directory" in refusal(config_in(tmp_path / "file"))


def test_a_config_of_another_version_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("train: {gone: 1}\n")
    assert "train.gone" in refusal(config_in(tmp_path), resume=True)


def test_one_process_at_a_time(tmp_path):
    with open_run_directory(config_in(tmp_path)):
        message = refusal(config_in(tmp_path))
        assert "in use by process" in message and "wait for it" in message
    with open_run_directory(config_in(tmp_path)):
        pass


def test_checking_without_opening(tmp_path):
    check_same_run(config_in(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    start(tmp_path / "run")
    check_same_run(config_in(tmp_path / "run", "train.num_steps=999"))
    with pytest.raises(RunDirectoryError, match="seed: 0 -> 5"):
        check_same_run(config_in(tmp_path / "run", "seed=5"))


def test_only_a_run_that_nobody_uses_is_removed(tmp_path):
    remove_run(tmp_path / "nothing")
    start(tmp_path / "run")
    in_use = pytest.raises(RunDirectoryError, match="in use by process")
    with open_run_directory(config_in(tmp_path / "run"), resume=True), in_use:
        remove_run(tmp_path / "run")
    remove_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"holds thesis.tex"):
        remove_run(tmp_path / "other")


def test_a_place_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "a place where a directory can be made" in refusal(config_in(tmp_path / "file" / "run"))


def test_resuming_forgets_later_steps(tmp_path):
    with open_run_directory(config_in(tmp_path)) as run:
        with MetricsLog(run.metrics_path) as log:
            for step in (1, 2, 3):
                log.log(step, {"a": step})
                run.write_groups(step, [{"step": step}])
        run.forget_after(2)
        assert [row["step"] for row in read_metrics(run.metrics_path)] == [1, 2]
        assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
            "step_00001.jsonl",
            "step_00002.jsonl",
        ]


def test_records_images_and_evaluations(tmp_path):
    with open_run_directory(config_in(tmp_path)) as run:
        run.write_groups(10, [{"question": "wörter"}, {"question": "b"}])
        lines = run.rollouts_path(10).read_text("utf-8").splitlines()
        assert [json.loads(line)["question"] for line in lines] == ["wörter", "b"]
        run.write_image("abc", Image.new("RGB", (2, 3), "red"))
        assert Image.open(run.image_path("abc")).size == (2, 3)
        run.write_evaluation("initial", {"pass@1": 0.25})
        run.write_evaluation("final", {"pass@1": 0.75})
        assert json.loads(run.evaluation_path.read_text()) == {"initial": {"pass@1": 0.25}, "final": {"pass@1": 0.75}}


def test_changed_keys_cover_nested_and_absent_ones():
    assert changed_keys(load_config(), load_config(["algorithm=grpo"])) == [
        "algorithm.name: axpo -> grpo",
        "algorithm.num_continuations: 4 -> None",
        "algorithm.resample_ratio: 0.25 -> None",
    ]
