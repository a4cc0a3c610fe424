"""Figures that others published for these experiments; a report shows them beside its own, in columns of their own.

They were obtained on real GTA5 and Cityscapes (1024x512, 1280x720, 50 epochs). None is a result of this project.
Sources: the assignment sheet, the student report, and the papers named in each entry.
"""

from __future__ import annotations

from datasets.labels import CLASS_NAMES

NOTE = (
    "Published: measured by others on real GTA5 and Cityscapes at 1024x512 over 50 epochs, with other code; a "
    "reference, not a result of these runs."
)
SHEET_NOTE = (
    "The sheet's 28.8 and 30.7 were reached with BiSeNet on ResNet-101, 500 pictures of each domain and 250 of val, as "
    "far as a public report of that year shows (micolrosini/Real-Time-Domain-Adaptation-in-Image-Segmentation)."
)
STUDENT_NOTE = "The student report's 23.9 was trained with jitter, blur and flip: its baseline is 24.2, not 20.8."

UPPER_BOUND = {  # network, backbone -> (by whom, accuracy, mIoU)
    # The sheet has one row for both; the public report whose figures it shows says which is which.
    ("bisenet", "resnet18"): (("assignment sheet", "71.5", "45.6"), ("student report", "", "41.8")),
    ("bisenet", "resnet101"): (("public report of the sheet's year", "80.5", "54.7"),),
    ("deeplabv2", "resnet101"): (("student report", "", "36.8"),),
}
COSTS = {  # as in measure_flops.py -> parameters, count, latency
    "bisenet resnet18": ("12.582 M (with the unused ImageNet classifier)", "25.78 G (fvcore's)", "16 (unsynchronised)"),
    "deeplabv2 resnet101": ("43.901 M", "0.375 T (fvcore's)", "243 (unsynchronised)"),
    "discriminator standard": ("2.781 M", "30.89e9 (2 x MACs, with upsampling)", "-"),
    "discriminator depthwise": ("189.424 K", "21.47e8 (2 x MACs, with upsampling)", "-"),
}
AUGMENTATION = {(): "20.8", ("jitter",): "22.8", ("blur",): "16.6", ("jitter", "blur"): "24.2"}
"""mIoU of BiSeNet trained on GTA5, student report."""

ADVERSARIAL = {
    "standard": (("assignment sheet", "66.8", "28.8"), ("student report", "", "23.9")),
    "depthwise": (("assignment sheet", "70.6", "30.7"),),
}

_PER_CLASS = {
    (): "68.0 8.4 67.2 4.1 8.7 7.4 5.2 2.3 72.3 7.4 66.0 23.8 0.0 40.2 9.4 3.6 1.2 0.6 0.0",
    ("jitter",): "72.9 4.8 71.2 4.6 14.7 4.5 0.9 1.5 69.7 16.0 78.9 26.9 0.4 45.1 20.0 0.5 0.0 0.0 0.0",
    ("blur",): "69.3 0.1 51.2 9.3 4.3 2.1 0.6 0.6 64.6 7.0 55.3 12.6 0.0 35.5 2.0 0.2 0.0 0.9 0.0",
    ("jitter", "blur"): "78.2 5.6 74.0 13.6 15.1 3.3 3.8 0.6 75.6 17.2 79.3 18.7 6.1e-5 57.1 13.6 1.6 0.1 2.0 0.0",
    "standard": "79.3 19.4 70.7 17.4 8.7 2.7 0.3 1.2 69.8 20.2 70.7 10.1 0.0 60.0 16.6 2.1 5.4 0.0 0.0",
}
PER_CLASS = {kind: dict(zip(CLASS_NAMES, row.split(), strict=True)) for kind, row in _PER_CLASS.items()}
"""IoU (%) per class, student report: by augmentation, and with a discriminator."""

METHODS = {
    "upper bound": "45.6 (sheet); 41.8 (student report)",
    "source only": "20.8 (student report); 24.2 with jitter and blur",
    "adversarial, standard": "28.8 (sheet, ResNet-101); 23.9 (student report); 38.29 (DeepLabV2, slides)",
    "adversarial, depthwise": "30.7 (sheet, ResNet-101)",
    "AdvEnt, standard + level multi": "43.8 (DeepLabV2, an oracle; ADVENT)",
    "MinEnt, auxiliary 0.0002 + level multi": "42.3 (DeepLabV2, an oracle; ADVENT)",
    "adversarial, standard + level multi": "42.35 (DeepLabV2, AdaptSegNet)",
    "adversarial, standard + level feature": "34.86 (DeepLabV2, slides)",
    "FDA, beta 0.01": "50.45 (DeepLabV2; three bands and pseudo-labels)",
    "DACS": "52.1 (DeepLabV2)",
    "SAC": "53.8 (DeepLabV2, from an adapted network)",
    "source only from SYNTHIA": "33.5 / 38.6 (16 / 13 classes, DeepLabV2; ADVENT)",
    "MinEnt, auxiliary 0.0002 from SYNTHIA + level multi": "38.1 / 44.2 (16 / 13 classes, DeepLabV2, oracle; ADVENT)",
    "AdvEnt, standard from SYNTHIA + level multi": "40.8 / 47.6 (16 / 13 classes, DeepLabV2, oracle; ADVENT)",
    "DACS from SYNTHIA": "48.3 / 54.8 (16 / 13 classes, DeepLabV2)",
}
"""mIoU by method, read with `by_others`; where a network stands beside it, it is not BiSeNet-18. An oracle: the best
checkpoint by the target's labels (ADVENT's test configuration). Slides: students' own run, on AdaptSegNet's method."""


def by_others(method: str) -> str:
    """What `METHODS` has of it, or a dash. SAC's is of a run that starts from another network, as its paper does."""
    return METHODS.get("SAC" if method.startswith("SAC + init ") else method, "-")


OTHER_REPORTS = {
    "upper bound": "47 to 54",
    "source only": "17 to 23",
    "adversarial, standard": "33.2",
    "FDA, beta 0.01": "30.6",
    "FDA, beta 0.05": "31.0",
    "FDA, beta 0.09": "28.0",
    "DACS": "40.6",
}
"""mIoU of the best public reports of this assignment with BiSeNet-18; `OTHER_REPORTS_NOTE` says whose."""

OTHER_REPORTS_NOTE = (
    "Other reports of this assignment: public repositories, BiSeNet-18 from ImageNet weights, one seed, the best epoch "
    "by the target's labels (an oracle), subsets of the data, other code. FDA and DACS are of OTOTOTO02's "
    "MLDL2024_project1 (SGD 0.025, batch 4, upper bound 53.9, source only 18.9). Adversarial is of two: enricog-98's "
    "(SGD 0.025, discriminator 0.0001, batch 8) and zepengli99's MLDL2024_project1 (the same rates, on colour jitter)."
)
