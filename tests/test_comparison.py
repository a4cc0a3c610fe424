"""Which runs a report compares: the references of a method, and the rows that its runs may fill."""

from types import SimpleNamespace

import pytest

from reporting.comparison import gap_recovered, reference
from reporting.results import Experiment, Measured
from reporting.student_tables import network_table
from reporting.tables import adversarial_with, conditions, named, others_of, variation


def like(script, **changed):
    """A run as `reference` and `adversarial_with` look at it."""
    plain = {"model": "bisenet", "backbone": "resnet18", "size": [48, 32], "limit": None, "lr": 0.1, "jitter": False,
             "cityscapes": "C", "batch_size": 2, "discriminator": "standard", "level": "output", "input": "softmax",
             "min_entropy": False}  # fmt: skip
    settings = plain | changed
    return SimpleNamespace(on_pictures_of=lambda other: True,
                           plain=True, of_row=True, of_assignment=True, script=script, settings=settings,
                           network=(settings["model"], settings["backbone"]))  # fmt: skip


def test_the_reference_is_the_nearest_run_of_the_same_network():
    e, near, far = like("train_dacs", jitter=True), like("train_gta5", lr=0.2, jitter=True), like("train_gta5", lr=0.2)
    for fits in ([near, far], [far, near]):
        assert reference(e, "train_gta5", fits) == (near, ["lr"])
    for change in ({"backbone": "resnet101"}, {"model": "pidnet"}, {"limit": 5}):
        assert reference(e, "train_gta5", [like("train_gta5", jitter=True, **change), far])[0] is far


def measured_on(pictures, seed=0, miou=0.5):
    data = {"Cityscapes train": {"pictures": 9}} | ({} if pictures is None else {"Cityscapes val": {"names": pictures}})
    return Measured(str(seed), seed, {}, {"data": data}, (), {"miou": miou})


def test_a_run_on_other_pictures_of_the_same_root_is_no_reference():
    """The folder grew between the runs."""
    own, grown, silent = (Experiment([measured_on(names)]) for names in ("a", "b", None))
    assert own.on_pictures_of(Experiment([measured_on("a")]))
    assert not own.on_pictures_of(grown)
    assert own.on_pictures_of(silent)  # runs of before do not say it
    e, other = like("train_dacs"), like("train_gta5")
    other.on_pictures_of = lambda e: False
    assert reference(e, "train_gta5", [other]) == (None, [])


def test_runs_that_share_a_seed_count_by_their_mean():
    runs = [measured_on("a", miou=0.2), measured_on("a", miou=0.4), measured_on("a", seed=1, miou=0.7)]
    for order in (runs, runs[::-1]):
        assert Experiment(order).by_seed() == pytest.approx({0: 0.3, 1: 0.7})


def test_a_row_says_what_fills_it_but_for_its_plain_method():
    e = SimpleNamespace(method="upper bound + loss ohem", label="upper bound + loss ohem, 512x256", data="Cityscapes")
    assert named("BiSeNet", "upper bound + loss ohem", e, [e]) == "BiSeNet"
    assert named("BiSeNet", "upper bound", e, [e]) == "BiSeNet: upper bound + loss ohem, 512x256"
    assert named("BiSeNet", "upper bound", e, [e, e]) == e.label
    e = SimpleNamespace(method="source only from SYNTHIA + jitter", label="a", data="SYNTHIA to Cityscapes")
    assert named("colour jitter", "source only + jitter", e, [e]) == "colour jitter"


def test_other_reports_figures_are_bisenet_18s():
    networks = (("bisenet", "resnet18"), ("bisenet", "resnet101"))
    one, other = (SimpleNamespace(network=network, method="DACS") for network in networks)
    assert [others_of(e, "DACS") for e in (one, other, None)] == ["40.6", "-", "40.6"]
    assert others_of(SimpleNamespace(network=("bisenet", "resnet18"), method="DACS + MIC"), "DACS") == "-"


def test_conditions_that_differ_say_whose_they_are():
    costs = {"a": {"counted_at": "Counts at 1."}, "b": {"counted_at": "Counts at 2.", "timed_at": "here"},
             "c": {"counted_at": "Counts at 1.", "timed_at": "here"}}  # fmt: skip
    assert conditions(costs, ["a", "c", "not run"], "counted_at") == ["Counts at 1."]
    assert conditions(costs, ["a", "b", "c"], "counted_at") == ["a, c: Counts at 1.", "b: Counts at 2."]
    assert conditions(costs, ["a", "b", "c"], "timed_at") == ["here"]


def test_latency_stands_beside_published_ones_with_its_conditions():
    cost = {"parameters_training": 1, "parameters_inference": 1, "fvcore": 1.0, "conv_flops": 2,
            "counted_at": "At 64x32.", "timed_at": "Timed at 96x64."}  # fmt: skip
    notes = network_table([], {"bisenet resnet18": cost}, 2, "bisenet", "resnet18").notes
    assert {"At 64x32.", "Timed at 96x64."} <= set(notes)


def test_a_gap_that_is_none_is_not_recovered():
    own, low, high = (SimpleNamespace(by_seed=lambda miou=miou: {0: miou}) for miou in (0.3, 0.4, 0.2))
    assert gap_recovered(own, low, high) == "no gap"


def test_the_assignments_rows_take_their_own_methods_alone():
    fits = adversarial_with("standard")
    assert fits(like("train_adversarial"))
    for change in ({"level": "multi"}, {"input": "entropy"}, {"min_entropy": True}, {"discriminator": "depthwise"}):
        assert not fits(like("train_adversarial", **change)), change
    for translation, step in (("fda", "a"), ("lab", "b")):
        run = like("train_fda", translation=translation)
        assert [letter for letter in "abcf" if variation(letter)(run)] == [step]
