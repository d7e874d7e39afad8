"""Means and intervals over prompts and seeds."""

import numpy as np
import pytest

from sweeps.intervals import MIN_PAIRS, best_setting, estimate_differences, estimate_means


def draw_table(settings: int, prompts: int, seeds: int, *, effect: float = 0.0, seed: int = 0) -> np.ndarray:
    """Prompts that differ by 0.2, seeds by 0.02, and a setting's effect: [settings, prompts, seeds]."""
    generator = np.random.default_rng(seed)
    prompt = generator.normal(0.6, 0.2, (1, prompts, 1))
    noise = generator.normal(0.0, 0.02, (settings, prompts, seeds))
    return prompt + noise + effect * np.arange(settings)[:, None, None]


def test_mean_of_a_known_table():
    estimate = estimate_means(np.array([[[1.0, 2.0], [3.0, 6.0]]]))[0]
    assert (estimate.count, estimate.mean) == (4, 3.0)


def test_four_pairs_get_no_interval_and_five_do():
    table = draw_table(1, MIN_PAIRS, 1)
    few = table.copy()
    few[0, 0, 0] = np.nan
    assert estimate_means(few)[0].low is None
    interval = estimate_means(table)[0]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < interval.mean < interval.high


def test_a_constant_table_has_an_interval_of_no_width():
    estimate = estimate_means(np.full((1, 5, 2), 0.25))[0]
    assert (estimate.low, estimate.mean, estimate.high) == (0.25, 0.25, 0.25)


def test_missing_runs_are_left_out_and_a_setting_without_runs_has_no_mean():
    table = draw_table(2, 3, 2)
    table[0, 1] = np.nan
    table[1] = np.nan
    first, second = estimate_means(table)
    assert first.count == 4
    assert first.mean == pytest.approx(np.nanmean(table[0]))
    assert second.count == 0
    assert np.isnan(second.mean)


def test_the_same_table_gives_the_same_interval():
    table = draw_table(2, 6, 2)
    assert estimate_means(table) == estimate_means(table)


def test_the_difference_to_the_baseline_itself_is_exactly_zero():
    estimate = estimate_differences(draw_table(3, 6, 2), baseline=1)[1]
    assert (estimate.low, estimate.mean, estimate.high) == (0.0, 0.0, 0.0)


def test_pairing_finds_an_effect_far_smaller_than_the_spread_of_prompts():
    table = draw_table(2, 10, 3, effect=0.05)
    means = estimate_means(table)
    assert means[0].high is not None
    assert means[1].low is not None
    assert means[0].high > means[1].low, "unpaired, the intervals overlap"
    difference = estimate_differences(table, baseline=0)[1]
    assert difference.low is not None
    assert difference.low > 0.03


def test_of_many_settings_that_do_not_differ_none_is_clear_though_some_intervals_leave_out_zero():
    found = [e for seed in range(20) for e in estimate_differences(draw_table(12, 10, 3, seed=seed), baseline=0)[1:]]
    leave_out_zero = [e for e in found if e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)]
    clear = [e for e in found if e.is_clear]
    assert len(leave_out_zero) > 5
    assert len(clear) < len(leave_out_zero) / 2


def test_a_difference_far_above_the_noise_is_clear():
    estimate = estimate_differences(draw_table(12, 10, 3, effect=0.05), baseline=0)
    assert all(e.is_clear for e in estimate[1:])
    assert not estimate[0].is_clear


def test_differences_use_only_the_pairs_that_both_settings_have():
    table = draw_table(2, 5, 2, effect=0.1)
    table[0, 0] = np.nan
    table[1, 1] = np.nan
    difference = estimate_differences(table, baseline=0)[1]
    assert difference.count == 6
    assert difference.mean == pytest.approx(np.nanmean(table[1] - table[0]))


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_true_mean_about_as_often_as_they_say(seeds: int):
    hits = 0
    for trial in range(200):
        estimate = estimate_means(draw_table(1, 20, seeds, seed=trial), seed=trial)[0]
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 0.6 <= estimate.high
    # The percentile bootstrap of 20 prompts covers a little less than 95%; three standard errors below that is 0.88.
    assert 0.88 <= hits / 200 <= 1.0


def test_intervals_agree_with_the_bootstrap_written_out_slowly():
    values = draw_table(1, 6, 3)[0]
    generator = np.random.default_rng(7)
    means = []
    for _ in range(4000):
        prompts = generator.integers(6, size=6)
        means.append(np.mean([values[prompt, generator.integers(3, size=3)].mean() for prompt in prompts]))
    low, high = np.quantile(means, [0.025, 0.975])
    estimate = estimate_means(values[None])[0]
    # Two bootstraps of 4000 draws each; an end of the interval has a standard error of about 0.004.
    assert estimate.low == pytest.approx(low, abs=0.015)
    assert estimate.high == pytest.approx(high, abs=0.015)


def test_best_setting_follows_the_mode_and_ignores_settings_without_runs():
    table = np.array([[[0.5]], [[0.7]], [[np.nan]]])
    assert best_setting(estimate_means(table), "max") == 1
    assert best_setting(estimate_means(table), "min") == 0
    assert best_setting(estimate_means(table[2:]), "max") is None
