"""Two policies compared, and the statistics of success rates and scores."""

from dataclasses import replace

import numpy as np
import pytest
from walking import fake

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.comparison import paired_comparison
from sb3_tgrpo.evaluation.results import Evaluation
from sb3_tgrpo.evaluation.statistics import (
    bootstrap_interval,
    interquartile_mean,
    mcnemar_p_value,
    mean_of_tasks,
    ranks,
    wilson_interval,
)


def test_mcnemar_exactly() -> None:
    assert mcnemar_p_value(0, 5) == 2 / 32 and mcnemar_p_value(5, 0) == 2 / 32
    assert mcnemar_p_value(1, 9) == 2 * (1 + 10) / 1024
    assert mcnemar_p_value(0, 0) == 1.0 and mcnemar_p_value(4, 4) == 1.0 and mcnemar_p_value(2, 3) == 1.0


def test_paired_counts_and_interval() -> None:
    before = fake([1, 1, 0, 0, 0, 0, 0, 1, 0, 0])
    after = fake([1, 0, 1, 1, 1, 1, 0, 1, 0, 1], "b")
    comparison = paired_comparison(before, after)
    assert (comparison.both, comparison.only_before, comparison.only_after, comparison.neither) == (2, 1, 5, 2)
    assert comparison.difference == pytest.approx(0.4) and comparison.p_value == 2 * (1 + 6) / 64
    # Gains +1 x5, -1, 0 x4: standard error sqrt((0.6 - 0.16) / 10) = 0.21; 1.96 of it about the mean, in steps of 0.1.
    low, high = comparison.interval
    assert low == pytest.approx(0.4 - 0.41, abs=0.1001) and high == pytest.approx(0.4 + 0.41, abs=0.1001)
    assert paired_comparison(after, before).difference == pytest.approx(-0.4)
    assert paired_comparison(before, before).interval == (0.0, 0.0)
    text = str(comparison)
    assert "only before 1, only after 5" in text and "+40.0 percentage points" in text and "3/10" in text and "7/10" in text


def test_what_is_resampled() -> None:
    """Five seeds on the same ten starts, all outcomes decided by the start: not fifty independent pairs."""
    before, after = fake([0] * 10), fake([1] * 5 + [0] * 5, "b")
    by_start = paired_comparison([before] * 5, [after] * 5)
    by_pair = paired_comparison([before] * 5, [after] * 5, resample="pair")
    by_evaluation = paired_comparison([before] * 5, [after] * 5, resample="evaluation")
    assert by_start.interval == paired_comparison(before, after).interval
    widths = [c.interval[1] - c.interval[0] for c in (by_start, by_pair, by_evaluation)]
    assert widths[0] / widths[1] == pytest.approx(5**0.5, rel=0.2) and widths[2] == 0.0
    assert by_start.n_pairs == 50 and by_start.n_evaluations == 5 and "5 evaluations pooled" in str(by_start)
    assert by_start.p_value is None and "McNemar" not in str(by_start) and by_start.to_dict()["p_value"] is None


def test_tasks_are_fixed_and_their_starts_are_drawn() -> None:
    tasks = "libero_object-3", "libero_object-4"
    before = [fake([0] * 10, task=task) for task in tasks]
    after = [fake([0] * 10, "b", tasks[0]), fake([1] * 10, "b", tasks[1])]
    together = Evaluation("b", [], Decoding(), "light", {}, [e for evaluation in after for e in evaluation.episodes])
    nothing = replace(together, policy="a", episodes=[e for evaluation in before for e in evaluation.episodes])
    for comparison in (paired_comparison(before, after), paired_comparison(nothing, together)):
        assert comparison.difference == 0.5 and comparison.interval == (0.5, 0.5)  # no start of either task differs


def test_one_run_of_each_task_has_no_interval_over_runs() -> None:
    before = [fake([0] * 10), fake([0] * 10, task="libero_object-4")]
    after = [fake([1] * 10, "b"), fake([0, 1] * 5, "b", "libero_object-4")]
    with pytest.raises(ValueError, match="at least two"):
        paired_comparison(before, after, resample="evaluation")
    assert paired_comparison(before * 2, after * 2, resample="evaluation").interval == (0.75, 0.75)


def test_repetitions_of_a_start_are_no_independent_pairs() -> None:
    def repeated(name: str, successes: int) -> Evaluation:
        once = fake([k < successes for k in range(5)], name)
        once.episodes = [replace(episode, repetition=n) for episode in once.episodes for n in range(10)]
        return once

    comparison = paired_comparison(repeated("a", 0), repeated("b", 2))
    assert (comparison.n_pairs, comparison.n_initial_states, comparison.p_value) == (50, 5, None)
    assert comparison.interval == (0.0, 0.8)


def test_only_identical_starts_are_paired() -> None:
    with pytest.raises(ValueError, match=r"initial states differ.*1 without a partner"):
        paired_comparison(fake([1, 0]), fake([1, 0, 1]))
    with pytest.raises(ValueError, match="initial states differ"):
        paired_comparison(fake([1, 0]), fake([1, 0], noise=0.02))
    with pytest.raises(ValueError, match="as many evaluations, got 1 and 2"):
        paired_comparison(fake([1]), [fake([1]), fake([1])])
    with pytest.raises(ValueError, match="at least two"):
        paired_comparison(fake([1]), fake([1]), resample="evaluation")
    with pytest.raises(ValueError, match="The assets differ, light and full"):
        paired_comparison(fake([1, 0]), replace(fake([1, 0]), assets="full"))
    with pytest.raises(ValueError, match=r"The step limits differ, .*280.* and .*150"):
        paired_comparison(*(replace(fake([1, 0]), protocol={"step_limits": {"libero_object-3": n}}) for n in (280, 150)))
    sampled = replace(fake([1, 0]), decoding=Decoding(0.7))
    assert "before      1/2" in (text := str(paired_comparison(fake([1, 0]), sampled)))
    assert "a (greedy)" in text and "a (T=0.7)" in text and "greedy" not in str(paired_comparison(sampled, sampled))


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, 4.0, 100.0, 5.0, -50.0])) == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0  # a quarter of three, rounded down, is none
    assert interquartile_mean(np.array([[0.0, 1.0, 1.0, 9.0], [5.0, 4.0, 6.0, 5.0]])).tolist() == [1.0, 5.0]
    with pytest.raises(ValueError, match="nothing to average"):
        interquartile_mean(np.array([]))


def test_bootstrap_draws_the_seeds_of_each_task() -> None:
    assert bootstrap_interval([[0.5, 0.5], [0.5]]) == (0.5, 0.5)
    # Tasks are kept: that one is easy and one is hard is no uncertainty. Drawing from all cells would spread from 0 to 1.
    assert bootstrap_interval([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], mean_of_tasks) == (0.5, 0.5)
    # Tasks weigh the same, however many of their seeds are finished.
    assert mean_of_tasks([[0.0, 0.0, 0.0], [1.0]]) == 0.5
    assert bootstrap_interval([[0.0, 0.0, 0.0], [1.0]], mean_of_tasks) == (0.5, 0.5)
    low, high = bootstrap_interval([[0.0, 1.0]], mean_of_tasks)
    assert (low, high) == (0.0, 1.0)  # 0, 1/2 and 1 with 1/4, 1/2 and 1/4
    rng = np.random.default_rng(0)
    low, high = bootstrap_interval([rng.normal(size=400).tolist()], mean_of_tasks)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    with pytest.raises(ValueError, match="each task"):
        bootstrap_interval([[1.0], []])


def test_ranks() -> None:
    assert ranks([0.9, 0.5, 0.7]) == [1.0, 3.0, 2.0]
    assert ranks([0.5, 0.9, 0.5, 0.1]) == [2.5, 1.0, 2.5, 4.0]


def test_wilson_by_hand():
    # 30 of 50 at z = 1.96: centre (0.6 + 3.8416 / 100) / 1.076832, half width 1.96 / 1.076832 * sqrt(0.0048 + 0.00038416).
    assert wilson_interval(30, 50) == pytest.approx((0.46181, 0.72391), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
