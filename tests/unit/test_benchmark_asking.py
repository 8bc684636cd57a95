"""Asking a benchmark: resumption, engines and judges that go down, images that leave the memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from data_files import encoded, picture, write_jsonl
from scripted_agent import ZOOM, ScriptedEngine, answer, by_turn, image_store, make_agent, rollout_of, turn_of

from nemo_axpo.engines.base import EngineError
from nemo_axpo.errors import RunDirectoryError
from nemo_axpo.eval.benchmarks.asking import Asker, AskingSettings, Outcome
from nemo_axpo.eval.benchmarks.definition import Benchmark
from nemo_axpo.eval.benchmarks.questions import BenchmarkQuestions
from nemo_axpo.eval.benchmarks.records import RecordFile, read_records
from nemo_axpo.rewards.base import VerifierRegistry, VerifierUnavailableError
from nemo_axpo.rewards.exact_match import ExactMatch
from nemo_axpo.rollouts.producer import Producer

SETTINGS = AskingSettings(
    num_rollouts=2, seed=3, max_questions_in_flight=2, max_failures=2, keep_text=True
)  # fmt: skip
COUNT = 5


class Verifier:
    """Exact match that is down for a while."""

    def __init__(self):
        self.is_down, self.num_asked = False, 0

    async def __call__(self, question, given):
        self.num_asked += 1
        if self.is_down:
            raise VerifierUnavailableError("no judge")
        return await ExactMatch()(question, given)


class Bench:
    """A benchmark of five questions, each with a picture of its own, and everything that asks it."""

    def __init__(self, directory, script):
        rows = [{"id": f"q{i}", "question": "colour?", "images": [f"{i}.png"], "answer": "red", "kind": "odd" if i % 2 else "even"}
                for i in range(COUNT)]  # fmt: skip
        for i in range(COUNT):
            (directory / f"{i}.png").write_bytes(encoded(picture(i, size=(192, 128))))
        path = write_jsonl(directory / "rows.jsonl", rows)
        benchmark = Benchmark(name="colours", path=path, reader="schema", verifiers=("exact_match",))
        self.directory = directory / "records"
        self.questions = BenchmarkQuestions(benchmark, cache_dir=str(directory / "cache"))
        self.engine, self.store, self.verifier = ScriptedEngine(script), image_store(), Verifier()

    def ask(self, settings=SETTINGS, **options) -> Outcome:
        producer = Producer(
            make_agent(self.engine, self.store),
            verifiers=VerifierRegistry({"colours": self.verifier}),
            max_retries=0,
            max_verifier_retries=0,
        )
        asker = Asker(producer, images=self.store, settings=settings)

        async def run():
            with RecordFile(self.directory, shard=options.pop("shard", (1, 1))) as file:
                return await asker.ask(self.questions, known=self.records, file=file, **options)

        return asyncio.run(run())

    @property
    def records(self):
        return read_records(self.directory)

    def rewards(self):
        return {id: tuple(row.reward for row in record.rollouts) for id, record in sorted(self.records.items())}


@pytest.fixture(name="make")
def make_fixture(tmp_path):
    return lambda script: Bench(tmp_path, script)


def red_after_zoom(request):
    """Rollout 0 zooms, then answers red; rollout 1 answers blue at once."""
    if rollout_of(request).endswith("/1"):
        return answer("blue")
    return (ZOOM, answer("red"))[turn_of(request)]


def test_every_question_is_asked_and_recorded(make):
    bench = make(red_after_zoom)
    finished = []
    assert bench.ask(on_finished=lambda: finished.append(1)) == Outcome(COUNT, 0, False)
    assert len(finished) == COUNT and bench.engine.max_in_flight <= 4  # two questions, two rollouts each
    assert bench.rewards() == {f"q{i}": (1.0, 0.0) for i in range(COUNT)}
    record = bench.records["q1"]
    first, second = record.rollouts
    assert (record.kind, record.answers) == ("odd", ("red",))
    assert (first.number, first.tools, first.num_turns, first.status) == (0, ("image_zoom_in",), 2, "answered")
    assert (second.number, second.tools, second.num_turns, second.answer) == (1, (), 1, "blue")
    assert second.text == answer("blue") and second.num_tokens == len(bench.engine.complete(answer("blue")).token_ids)
    assert first.text.startswith(ZOOM) and first.text.endswith(answer("red"))
    assert first.text.count("<|image_pad|>") == 1  # the crop, however many tokens it has
    assert "<tool_response>" in first.text
    assert len({request.seed for request in bench.engine.requests}) == 3 * COUNT


def test_images_leave_the_memory(make):
    bench = make(red_after_zoom)
    seen = []
    bench.ask(on_finished=lambda: seen.append(len(bench.store)))
    assert len(bench.store) == 0 and max(seen) <= 4  # two questions in flight, each a picture and a crop


def test_a_picture_that_several_questions_show_stays_until_the_last_one(make):
    """Question 1 ends while question 0, which shows the same picture, is about to zoom into it."""
    bench = make(red_after_zoom)
    for i in range(1, COUNT):
        (bench.directory.parent / f"{i}.png").write_bytes((bench.directory.parent / "0.png").read_bytes())

    async def slow_first(request):
        await asyncio.sleep(0.2 if rollout_of(request).startswith("q0") else 0)
        return await generate(request)

    generate, bench.engine.generate = bench.engine.generate, slow_first
    assert bench.ask() == Outcome(COUNT, 0, False)
    assert bench.rewards() == {f"q{i}": (1.0, 0.0) for i in range(COUNT)} and len(bench.store) == 0


def test_a_finished_benchmark_is_not_asked_again(make):
    bench = make(red_after_zoom)
    bench.ask()
    lines = (bench.directory / "records.jsonl").read_bytes()
    num_requests = len(bench.engine.requests)
    assert bench.ask() == Outcome(0, 0, False)
    assert len(bench.engine.requests) == num_requests and (bench.directory / "records.jsonl").read_bytes() == lines


def test_a_half_written_line_is_cut_off_and_its_question_asked_again(make):
    bench = make(red_after_zoom)
    bench.ask()
    path, whole = bench.directory / "records.jsonl", bench.records
    path.write_bytes(path.read_bytes()[:-40])
    lost = set(whole) - set(bench.records)
    num_requests = len(bench.engine.requests)
    assert len(lost) == 1 and bench.ask() == Outcome(1, 0, False)
    assert {rollout_of(r).partition("/")[0] for r in bench.engine.requests[num_requests:]} == lost
    assert bench.records == whole  # the same seeds, hence the same answers


def test_a_broken_line_is_named(make):
    bench = make(red_after_zoom)
    bench.ask()
    path = bench.directory / "records.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]) + "\n")
    with pytest.raises(RunDirectoryError, match="records.jsonl line 2 must be the record of a question.*remove the line"):
        bench.records  # noqa: B018 - it reads


def test_lost_rollouts_are_asked_again_and_no_others(make):
    bench = make(lambda request: EngineError("down") if rollout_of(request) == "q2/1" else red_after_zoom(request))
    assert bench.ask() == Outcome(COUNT, 1, False)
    assert bench.rewards()["q2"] == (1.0,)
    bench.engine.script, before = red_after_zoom, len(bench.engine.requests)
    assert bench.ask() == Outcome(1, 0, False)
    assert [rollout_of(request) for request in bench.engine.requests[before:]] == ["q2/1"]
    assert bench.rewards() == {f"q{i}": (1.0, 0.0) for i in range(COUNT)}


def test_answers_outlive_a_judge_that_is_down(make):
    """After two questions that nobody judged no further one is asked; the next start judges, and samples nothing anew."""
    bench = make(red_after_zoom)
    bench.verifier.is_down = True
    outcome = bench.ask(replace(SETTINGS, max_questions_in_flight=1))
    assert outcome == Outcome(2, 2, has_stopped=True)
    assert bench.rewards() == {"q0": (None, None), "q1": (None, None)}
    bench.verifier.is_down, before = False, len(bench.engine.requests)
    assert bench.ask() == Outcome(COUNT, 0, False)
    asked_again = {rollout_of(request).partition("/")[0] for request in bench.engine.requests[before:]}
    assert asked_again == {"q2", "q3", "q4"}
    assert bench.rewards() == {f"q{i}": (1.0, 0.0) for i in range(COUNT)}


def test_an_engine_that_is_down_stops_the_evaluation(make):
    bench = make(lambda request: EngineError("down"))
    assert bench.ask(replace(SETTINGS, max_questions_in_flight=1)) == Outcome(2, 2, has_stopped=True)
    assert bench.rewards() == {"q0": (), "q1": ()}


def test_single_failures_do_not_stop_it(make):
    failing = ("q0", "q2", "q4")
    bench = make(
        lambda request: EngineError("down") if rollout_of(request).partition("/")[0] in failing else answer("red")
    )
    assert bench.ask(replace(SETTINGS, max_questions_in_flight=1)) == Outcome(COUNT, 3, False)


def test_shards_share_the_questions_and_see_each_other_s_records(make):
    bench = make(by_turn(answer("red")))
    places = bench.questions.places
    assert bench.ask(places=places[0::2], shard=(1, 2)) == Outcome(3, 0, False)
    assert bench.ask(places=places[1::2], shard=(2, 2)) == Outcome(2, 0, False)
    assert sorted(path.name for path in bench.directory.iterdir()) == ["records-1-of-2.jsonl", "records-2-of-2.jsonl"]
    assert bench.ask() == Outcome(0, 0, False) and len(bench.records) == COUNT


def test_the_fullest_record_of_a_question_counts_whichever_file_it_is_in(make):
    bench = make(by_turn(answer("red")))
    bench.verifier.is_down = True
    bench.ask(replace(SETTINGS, max_failures=9))
    bench.verifier.is_down = False
    bench.ask(shard=(1, 2))  # its file comes before records.jsonl
    assert bench.rewards() == {f"q{i}": (1.0, 1.0) for i in range(COUNT)}


def test_two_processes_may_not_write_one_file(tmp_path):
    with RecordFile(tmp_path), pytest.raises(RunDirectoryError, match="one process may write a file of records"):
        RecordFile(tmp_path).__enter__()


def test_texts_may_be_left_out(make):
    bench = make(by_turn(answer("red")))
    bench.ask(replace(SETTINGS, keep_text=False))
    assert {row.text for record in bench.records.values() for row in record.rollouts} == {""}


def test_an_error_of_the_data_ends_it_by_its_name(make):
    bench = make(by_turn(answer("red")))
    (bench.directory.parent / "3.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match="row 4, field 'images\\[0\\]' must be a whole image"):
        bench.ask(replace(SETTINGS, max_questions_in_flight=1))
    assert sorted(bench.records) == ["q0", "q1", "q2"]
