"""Which runs a report compares: the references of a method, and the rows that its runs may fill."""

from types import SimpleNamespace

from reporting.comparison import gap_recovered, reference
from reporting.tables import adversarial_with, variation


def like(script, **changed):
    """A run as `reference` and `adversarial_with` look at it."""
    plain = {"model": "bisenet", "backbone": "resnet18", "size": [48, 32], "limit": None, "lr": 0.1, "jitter": False,
             "cityscapes": "C", "batch_size": 2, "discriminator": "standard", "level": "output", "input": "softmax",
             "min_entropy": False}  # fmt: skip
    return SimpleNamespace(plain=True, of_row=True, of_assignment=True, script=script, settings=plain | changed)


def test_the_reference_is_the_nearest_run_of_the_same_network():
    e, near, far = like("train_dacs", jitter=True), like("train_gta5", lr=0.2, jitter=True), like("train_gta5", lr=0.2)
    for fits in ([near, far], [far, near]):
        assert reference(e, "train_gta5", fits) == (near, ["lr"])
    for change in ({"backbone": "resnet101"}, {"model": "pidnet"}, {"limit": 5}):
        assert reference(e, "train_gta5", [like("train_gta5", jitter=True, **change), far])[0] is far


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
