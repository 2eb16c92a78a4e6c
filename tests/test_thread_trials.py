"""How many threads one evaluation gets: the fewest that are as fast as any, found by trial."""

from __future__ import annotations

import pytest

from forceserver.thread_trials import MOST_TRIALS, ROUNDS, WARM_UP, ThreadTrials


def settle(trials: ThreadTrials, most: int, seconds: dict[int, float], what: str = "forces") -> list[int]:
    """The threads of each evaluation until the choice is made, and of the next one."""
    chosen = []
    for _ in range(WARM_UP + ROUNDS * len(seconds) + 1):
        n_threads = trials.choose(what, most)
        trials.note(what, most, n_threads, seconds[n_threads])
        chosen.append(n_threads)
    return chosen


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({8: 4.0, 4: 2.0, 2: 3.0, 1: 5.0}, 4),
        ({8: 1.00, 4: 1.02, 2: 1.04, 1: 1.2}, 2),  # what more threads gain is not worth them
        ({8: 3.0, 4: 3.0, 2: 2.0, 1: 1.0}, 1),
        ({6: 1.0, 3: 2.0, 1: 3.0}, 6),
    ],
)
def test_the_fewest_threads_that_are_about_as_fast_as_any_are_kept(
    seconds: dict[int, float], best: int
) -> None:
    most = max(seconds)
    chosen = settle(ThreadTrials("model"), most, seconds)
    assert chosen[:WARM_UP] == [most] * WARM_UP
    assert {n: chosen[WARM_UP:-1].count(n) for n in seconds} == dict.fromkeys(seconds, ROUNDS)
    assert chosen[-1] == best


def test_a_slow_moment_does_not_decide() -> None:
    trials = ThreadTrials("model")
    for index in range(WARM_UP + 2 * ROUNDS):
        n_threads = trials.choose("forces", 2)
        disturbed = n_threads == 2 and index % 4 == 3
        trials.note("forces", 2, n_threads, 9.0 if disturbed else {2: 1.0, 1: 2.0}[n_threads])
    assert trials.choose("forces", 2) == 2


def test_each_kind_of_evaluation_has_its_own_trial_and_one_thread_needs_none() -> None:
    trials = ThreadTrials("model")
    assert settle(trials, 2, {2: 1.0, 1: 2.0}, "small")[-1] == 2
    assert settle(trials, 2, {2: 2.0, 1: 1.0}, "large")[-1] == 1
    assert trials.choose("small", 2) == 2
    assert {trials.choose("any", 1) for _ in range(9)} == {1}


def test_no_more_trials_are_begun_than_can_be_kept() -> None:
    trials = ThreadTrials("model")
    for index in range(MOST_TRIALS):
        trials.choose(str(index), 2)
    assert settle(trials, 2, {2: 2.0, 1: 1.0}, "one more") == [2] * (WARM_UP + 2 * ROUNDS + 1)


def test_the_log_says_what_was_chosen_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        settle(ThreadTrials("model"), 2, {2: 0.045, 1: 0.038}, "direct forces of 192 atoms")
    assert "model: direct forces of 192 atoms: 1 of torch's threads" in caplog.text
    assert "2: 45.0 ms, 1: 38.0 ms" in caplog.text
