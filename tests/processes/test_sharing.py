"""The parts of several processes come together as one process would have made them."""

from __future__ import annotations

import pytest
from processes.threads import together

from uwm.errors import BadInput
from uwm.processes import from_first, in_order, in_rounds, is_first, is_own, own_part, several, workspace

COUNTS = [2, 3, 4]
BATCHES = [0, 1, 2, 3, 4, 7, 8]


def test_a_process_by_itself_does_everything():
    assert not several()
    assert is_first()
    assert own_part([1, 2, 3]) == [1, 2, 3]
    assert in_order(iter("abc"), "letters") == ["a", "b", "c"]
    assert [*in_rounds(iter("abc"), "letters")] == ["a", "b", "c"]
    assert from_first(lambda: 5, "five") == 5


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("batches", BATCHES)
def test_results_are_in_the_order_of_one_process(count, batches):
    made = []

    def square(number):
        made.append(number)
        return number**2

    def work(rank):
        late = in_order((square(number) for number in own_part(range(batches))), "late")
        soon = [*in_rounds((square(n) if is_own(n) else None for n in range(batches)), "soon")]
        return late, soon

    wanted = [number**2 for number in range(batches)]
    assert together(count, work) == [(wanted, wanted)] * count
    assert sorted(made) == sorted([*range(batches)] * 2)  # each batch is made by one of them


@pytest.mark.parametrize("share", ["in_order", "in_rounds"])
@pytest.mark.parametrize("bad", [{3}, {0}, {6}, {4, 5}, {5, 6}])
def test_an_error_of_one_process_is_raised_in_all_the_first_one_first(share, bad):
    def result(number):
        if number in bad:
            raise BadInput(f"batch {number}")
        return number

    def work(rank):
        if share == "in_order":
            return in_order((result(number) for number in own_part(range(7))), "batches")
        return [*in_rounds((result(n) if is_own(n) else None for n in range(7)), "batches")]

    found = together(3, work)
    assert [str(error) for error in found] == [f"batch {min(bad)}"] * 3
    assert all(isinstance(error, BadInput) for error in found)


def test_only_the_first_process_makes_what_is_made_once():
    made = []
    assert together(3, lambda rank: from_first(lambda: made.append(rank) or rank + 10, "once")) == [10] * 3
    assert made == [0]


def test_each_process_writes_to_a_place_of_its_own_that_holds_what_there_was(tmp_path):
    output = tmp_path / "out"
    (output / "points").mkdir(parents=True)
    (output / "points" / "journal").write_text("earlier")
    (tmp_path / "out.state").write_text("state")
    (tmp_path / "other").write_text("not asked for")

    def work(rank):
        with workspace(output, [output, tmp_path / "out.state"]) as place:
            journal = place / "points" / "journal"
            found = journal.read_text(), place.with_name("out.state").read_text(), place.with_name("other").exists()
            journal.write_text(f"by {rank}")
        return place, found

    found = together(3, work)
    assert found[0] == (output, ("earlier", "state", True))
    assert [one for _, one in found[1:]] == [("earlier", "state", False)] * 2
    assert (output / "points" / "journal").read_text() == "by 0"
    assert not any(place.exists() for place, _ in found[1:])
    assert len({place for place, _ in found}) == 3


def test_a_job_that_goes_on_needs_a_file_system_that_all_see(tmp_path, monkeypatch):
    from uwm.processes import sharing

    output, files = tmp_path / "out", sharing._files
    output.mkdir()
    (output / "journal").write_text("earlier")

    def elsewhere(path):
        return files(path) if is_first() else []

    monkeypatch.setattr(sharing, "_files", elsewhere)

    def work(rank):
        with workspace(output, [output]):
            return "worked"

    first, second = together(2, work)
    assert "not the same for every process; a job that goes on needs a shared file system" in str(second)
    assert str(first) == str(second)
