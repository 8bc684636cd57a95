"""The nine benchmarks on small copies in their published layouts, found as a user finds them: ``NAME=DIRECTORY``."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from benchmark_files import WRITERS, hr_bench_rows, math_vr_row, mathvision_row, mmsearch_row, write_vstar
from data_files import picture, write_jsonl, write_parquet

from nemo_axpo.data.image_sources import ImageSource
from nemo_axpo.data.questions import QuestionRecord, RecordMessage
from nemo_axpo.data.readers import image_marks
from nemo_axpo.data.readers.base import RowPlace
from nemo_axpo.data.readers.registry import get_reader
from nemo_axpo.errors import ConfigError, DataError
from nemo_axpo.eval.benchmarks.definition import PAPER_BENCHMARKS, load_benchmarks
from nemo_axpo.eval.benchmarks.questions import BenchmarkQuestions
from nemo_axpo.types import Message, Question, TextPart

LETTER = "Answer with the letter of the right option."
SHORT = "Answer in as few words as possible."


def asked(name, directory, tmp_path):
    (benchmark,) = load_benchmarks([f"{name}={directory}"])
    return BenchmarkQuestions(benchmark, cache_dir=str(tmp_path / "cache"))


@pytest.fixture(name="read")
def read_fixture(tmp_path):
    """Records of a benchmark's small copy, without their images."""

    def read(name):
        questions = asked(name, WRITERS[name](tmp_path / "copy"), tmp_path)
        records = [questions.record(place) for place in questions.places]
        for record in records:
            assert all(image.load().size == (64, 48) for image in record.images)
        return [replace(record, images=()) for record in records]

    return read


def record(id, parts, answer, source, **rest):
    return QuestionRecord(id, (RecordMessage("user", parts),), answer, source, **rest)


def test_the_paper_s_nine_are_there():
    assert tuple(WRITERS) == PAPER_BENCHMARKS
    assert [benchmark.name for benchmark in load_benchmarks(["all"])] == [*PAPER_BENCHMARKS]


def test_all_leaves_out_what_another_word_names(tmp_path):
    found = {benchmark.name: benchmark.path for benchmark in load_benchmarks(["all", f"vstar={tmp_path}"])}
    assert sorted(found) == sorted(PAPER_BENCHMARKS)
    assert found["vstar"] == str(tmp_path / "test_questions.jsonl") and found["mathvision"] is None


def test_mathvision(read):
    line = "If the question has options, answer with the letter of the right one."
    assert read("mathvision") == [
        record("mathvision-4", ("Which bike is the dearest?\n", 0, line), "A", "mathvision", kind="combinatorics"),
        record("mathvision-7", (0, f"How many blobs?\n{line}"), "\\frac{7}{2}", "mathvision", kind="counting"),
        record(
            "mathvision-9",
            (0, f" is turned, as in image 2. Which way?\n(A) left\n(B) right\n{line}"),
            "B",
            "mathvision",
            kind="combinatorics",
        ),
    ]


def test_dynamath_asks_one_variant(read):
    line = (
        "If the question has options, answer with the letter of the right one. Give a number that is not whole with "
        "three decimals."
    )
    choice = f"Which one grows? choice: (A) the red one (B) the blue one\n{line}"
    assert read("dynamath") == [
        record("dynamath-1", (0, choice), "B", "dynamath", kind="puzzle test"),
        record("dynamath-2", (0, f"What is the slope?\n{line}"), "0.333", "dynamath", kind="puzzle test"),
    ]


def test_math_vr_shows_pictures_where_they_are_named(read, tmp_path):
    line = "If the question has several parts, give the answer of each, in their order."
    assert read("math_vr") == [
        record(
            "math_vr-0", ("In ", 0, " and ", 1, f", what is x?\n{line}"), "x = 3", "math_vr", kind="multimodal"
        ),
        record("math_vr-1", (f"2+2?\n{line}",), "4", "math_vr", kind="text"),
    ]  # fmt: skip
    questions = asked("math_vr", tmp_path / "copy", tmp_path)
    shown = [image.load().tobytes() for image in questions.record(questions.places[0]).images]
    assert shown == [picture(2).tobytes(), picture(1).tobytes()]


def test_math_vr_parts_of_an_answer_and_subsets():
    place = RowPlace("file row 1")
    assert get_reader("math_vr")(math_vr_row(answers=["1", "2"]), place).answer == "1; 2"
    assert get_reader("math_vr_text")(math_vr_row(), place) is None
    assert get_reader("math_vr_multimodal")(math_vr_row(), place).kind == "multimodal"
    with pytest.raises(DataError, match="file row 1 needs the field 'image2'"):
        get_reader("math_vr")(math_vr_row(image2=None), place)
    with pytest.raises(DataError, match="field 'answers' must be a text, or a list of texts that is not empty"):
        get_reader("math_vr")(math_vr_row(answers=[]), place)


def test_vstar(read):
    text = f"What is the material of the glove?\n(A) rubber\n(B) cotton\n{LETTER}"
    assert read("vstar") == [
        record(f"vstar-{category}-4690", (0, text), "A", "vstar", kind=category)
        for category in ("direct_attributes", "relative_position")
    ]


def test_visual_probe_finds_pictures_from_its_own_directory_and_the_one_above(read):
    assert read("visual_probe_hard") == [
        record("visual_probe_hard-hard_0", (0, "\nWhat is on the sign?"), "stop", "visual_probe_hard"),
        record("visual_probe_hard-hard_1", (0, "What colour has it?"), "red", "visual_probe_hard"),
    ]


@pytest.mark.parametrize("name", ["hr_bench_4k", "hr_bench_8k"])
def test_hr_bench_asks_every_question_once(read, name):
    options = "(A) red\n(B) blue\n(C) green\n(D) white"
    assert read(name) == [
        record(f"{name}-{4 * n}", (0, f"Which colour has door {n}?\n{options}\n{LETTER}"), "A", name, kind=kind)
        for n, kind in enumerate(("single", "cross"))
    ]


def test_hr_bench_in_every_order_of_its_options():
    rows = hr_bench_rows()
    read = get_reader("hr_bench_cycles")
    answers = [read(row, RowPlace("row")) for row in rows[:4]]
    assert [one.answer for one in answers] == ["A", "D", "C", "B"]
    assert all(f"({one.answer}) red" in one.text for one in answers)


def test_hr_mmsearch_reads_all_its_files(read):
    assert read("hr_mmsearch") == [
        record(f"hr_mmsearch-sports_{n}", (0, f"Who won here in 2024?\n{SHORT}"), "The blue team", "hr_mmsearch", kind="sports")
        for n in (1, 2)
    ]  # fmt: skip


def test_mmsearch(read):
    text = f"Which club is this?\n{SHORT}"
    assert read("mmsearch") == [
        record("mmsearch-news_0", (0, text), "Real Madrid", "mmsearch", candidate_answers=("Real Madrid CF",), kind="news"),
        record("mmsearch-knowledge_1", (text,), "Real Madrid", "mmsearch", kind="knowledge"),
    ]  # fmt: skip


def test_mmsearch_alternatives_as_json():
    read, place = get_reader("mmsearch"), RowPlace("row 3")
    assert read(mmsearch_row(alternative_gt_answers='["RM"]'), place).candidate_answers == ("RM",)
    assert read(mmsearch_row(alternative_gt_answers=None), place).candidate_answers == ()
    with pytest.raises(DataError, match="row 3, field 'alternative_gt_answers' must be a list, or a list as JSON"):
        read(mmsearch_row(alternative_gt_answers="RM"), place)


def test_options_reach_the_verifier():
    """The lines that readers write are those that the verifier of multiple choice reads."""
    from nemo_axpo.rewards.multiple_choice import options_of

    text = get_reader("hr_bench")(hr_bench_rows()[0], RowPlace("row")).text
    question = Question("q", (Message("user", (TextPart(text),)),), "A", "s")
    assert options_of(question) == {"a": "red", "b": "blue", "c": "green", "d": "white"}


def test_image_marks():
    assert image_marks.numbered_marks("<image2> a <image1> b <image2>") == (2, 1)
    assert image_marks.unnumbered("<image2> a <image1> b <image2>") == "<image> a <image> b image 2"
    assert image_marks.one_image("see <image1>, <image2>") == "see <image>, image 2"
    assert image_marks.one_image("see") == "see"


class TestBadInput:
    """Everything is told before anything is sampled, with file, row and field."""

    def test_a_missing_field(self, tmp_path):
        row = mathvision_row()
        del row["answer"]
        path = write_parquet(tmp_path / "data/testmini-0.parquet", [row])
        with pytest.raises(DataError, match=f"{path} row 1 needs the field 'answer'; got fields id, question"):
            asked("mathvision", tmp_path, tmp_path)

    def test_a_missing_picture(self, tmp_path):
        directory = write_vstar(tmp_path / "vstar")
        (directory / "relative_position" / "sa_4690.jpg").unlink()
        with pytest.raises(DataError, match=r"row 2, field 'image' must be an image file that exists; got .*4690.jpg"):
            asked("vstar", directory, tmp_path)

    def test_a_broken_picture_is_told_when_it_is_asked(self, tmp_path):
        directory = write_vstar(tmp_path / "vstar")
        (directory / "direct_attributes" / "sa_4690.jpg").write_bytes(b"\xff\xd8\xff no picture")
        questions = asked("vstar", directory, tmp_path)
        source: ImageSource = questions.record(questions.places[0]).images[0]
        with pytest.raises(DataError, match="row 1, field 'image' must be a whole image"):
            source.load()

    def test_a_corrupt_parquet_file(self, tmp_path):
        path = tmp_path / "hr_bench_4k.parquet"
        write_parquet(path, hr_bench_rows())
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="hr_bench_4k.parquet must be a whole Parquet file.*restore the file"):
            asked("hr_bench_4k", tmp_path, tmp_path)

    def test_ids_that_occur_twice(self, tmp_path):
        write_parquet(tmp_path / "end2end.parquet", [mmsearch_row(), mmsearch_row()])
        with pytest.raises(DataError, match="question ids must be unique"):
            asked("mmsearch", tmp_path, tmp_path)

    def test_no_question(self, tmp_path):
        write_parquet(tmp_path / "hr_bench_4k.parquet", hr_bench_rows()[1:2])
        with pytest.raises(DataError, match="must have questions; got none of 1 rows"):
            asked("hr_bench_4k", tmp_path, tmp_path)

    def test_a_directory_without_the_file(self, tmp_path):
        with pytest.raises(DataError, match="test_questions.jsonl"):
            asked("vstar", tmp_path, tmp_path)

    def test_data_that_must_be_downloaded_whole(self, tmp_path):
        (benchmark,) = load_benchmarks(["vstar"])
        with pytest.raises(ConfigError, match="hf download craigwu/vstar_bench .* then --benchmark vstar=DIR"):
            BenchmarkQuestions(benchmark)


class TestOwnBenchmark:
    """One YAML file and one reader."""

    YAML = "name: doors\npath: doors.jsonl\nreader: doors.py:read\nverifiers: [exact_match]\ninstruction: One word.\n"
    READER = (
        "from nemo_axpo.data.questions import QuestionRecord, user_turn\n"
        "def read(row, place):\n"
        "    text = user_turn(row['q'], num_images=0, where=place.where)\n"
        "    return QuestionRecord(row['n'], text, row['a'], place.source)\n"
    )

    def write(self, directory, yaml=YAML):
        directory.mkdir(exist_ok=True)
        (directory / "doors.yaml").write_text(yaml)
        (directory / "doors.py").write_text(self.READER)
        write_jsonl(directory / "doors.jsonl", [{"q": "Which door?", "n": "d1", "a": "left"}])
        return directory / "doors.yaml"

    def test_it_is_read_from_wherever_it_lies(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        self.write(tmp_path / "mine")
        (benchmark,) = load_benchmarks(["mine/doors.yaml"])
        questions = BenchmarkQuestions(benchmark, cache_dir=str(tmp_path / "cache"))
        assert [questions.record(place) for place in questions.places] == [
            record("d1", ("Which door?\nOne word.",), "left", "doors")
        ]

    def test_its_data_may_lie_elsewhere(self, tmp_path):
        file = self.write(tmp_path / "mine")
        other = write_jsonl(tmp_path / "other.jsonl", [{"q": "?", "n": f"d{i}", "a": "x"} for i in range(3)])
        (benchmark,) = load_benchmarks([f"{file}={other}"])
        assert len(BenchmarkQuestions(benchmark, cache_dir=str(tmp_path / "cache"))) == 3
        assert len(BenchmarkQuestions(benchmark, limit=2, cache_dir=str(tmp_path / "cache"))) == 2

    @pytest.mark.parametrize(
        ("yaml", "message"),
        [
            ("name: [", "(?s)a benchmark is a YAML file with its fields.*docs/evaluation.md"),
            ("- a", "the file holds list, no mapping"),
            (YAML + "verifier: judge\n", "may hold the fields of a benchmark; got 'verifier': did you mean verifiers"),
            (YAML.replace("exact_match", "exactly"), "field 'verifiers'.*exactly"),
            ("name: doors\npath: x.jsonl\nreader: schema\n", "field 'verifiers': field required; got none"),
            (YAML.replace("doors\n", "a/b\n", 1), "field 'name'"),
        ],
    )
    def test_a_file_that_does_not_fit(self, tmp_path, yaml, message):
        with pytest.raises(ConfigError, match=message):
            load_benchmarks([str(self.write(tmp_path, yaml))])

    def test_words_that_name_no_benchmark(self, tmp_path):
        with pytest.raises(ConfigError, match="got 'vstarr': did you mean vstar"):
            load_benchmarks(["vstarr"])
        with pytest.raises(ConfigError, match="every benchmark may be asked once; got \\['vstar'\\]"):
            load_benchmarks(["vstar=x", "vstar=y"])
        with pytest.raises(ConfigError, match="nothing.yaml must be one"):
            load_benchmarks([str(tmp_path / "nothing.yaml")])
        (tmp_path / "bare.yaml").write_text("name: bare\nreader: schema\nverifiers: [math]\n")
        with pytest.raises(ConfigError, match="benchmark bare needs a path or a hub id"):
            BenchmarkQuestions(load_benchmarks([str(tmp_path / "bare.yaml")])[0])


def test_shipped_files_say_what_the_paper_lists():
    from nemo_axpo.eval.paper_numbers import load_paper_numbers

    numbers = load_paper_numbers()
    shipped = load_benchmarks(["all"])
    assert tuple(benchmark.paper_name for benchmark in shipped) == numbers.benchmarks
    for benchmark in shipped:
        assert benchmark.paper_name in numbers.groups[benchmark.group] and callable(get_reader(benchmark.reader))


def test_json_of_the_fixture_is_a_list(tmp_path):
    """VisualProbe publishes a JSON list, not JSON lines."""
    assert isinstance(json.loads((WRITERS["visual_probe_hard"](tmp_path / "v") / "val.json").read_text()), list)
