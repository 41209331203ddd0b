"""The paper's Tables 2 to 5 as CSV: shape, typed values, and the counts that the book's claims rest on.

In the counts an "attack cell" is one of the three gradient attacks (noise and clean are not attacks) of one
model and
dataset: 4 architectures x 2 datasets x 3 attacks = 24 for each kind of training.
"""

import csv
from itertools import product
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "paper"
COLUMNS = "table dataset architecture norm statistics training attack accuracy ci95".split()
COLUMN_ORDER = ("clean", "noise", "grad_sign", "bim_linf", "pgd_linf")
ATTACKS = ("grad_sign", "bim_linf", "pgd_linf")
DATASETS = ("cifar10", "cifar100")
RESNETS, VGGS = ("resnet38", "resnet50"), ("vgg11", "vgg16")
BN, BNW = ("batch_norm", "tracked"), ("batch_norm", "batch")
RN, RNT = ("robust_norm", "batch"), ("robust_norm", "tracked")
ZEROS = ("cifar10", "vgg11", *RNT, "adversarial")  # a row of zeros in the paper, clean accuracy included


def rows(table):
    with open(FOLDER / f"table{table}.csv", newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS
        return list(reader)


def values(*tables):
    """{(dataset, architecture, norm, statistics, training, attack): accuracy}"""
    return {tuple(row[c] for c in COLUMNS[1:7]): float(row["accuracy"]) for t in tables for row in rows(t)}


ALL = values(4, 5)


def compare(left, right, training, architectures=RESNETS + VGGS, datasets=DATASETS):
    """In how many attack cells `left` is higher, lower, equal; the row of zeros counts like any other."""
    differences = []
    for dataset, architecture, attack in product(datasets, architectures, ATTACKS):
        first = ALL[(dataset, architecture, *left, training, attack)]
        differences.append(first - ALL[(dataset, architecture, *right, training, attack)])
    signs = [(d > 0) - (d < 0) for d in differences]
    return signs.count(1), signs.count(-1), signs.count(0)


def order_of(first, second, training):
    """In how many rows of Tables 4 and 5 accuracy under `first` is higher, lower, equal to `second`."""
    keys = [key[:5] for key in ALL if key[4] == training and key[5] == "clean"]
    signs = [(a > b) - (a < b) for a, b in ((ALL[(*k, first)], ALL[(*k, second)]) for k in keys)]
    return signs.count(1), signs.count(-1), signs.count(0)


@pytest.mark.parametrize(("table", "count"), [(2, 30), (3, 16), (4, 160), (5, 160)])
def test_each_table_is_whole(table, count):
    found = rows(table)
    assert len(found) == count == len(values(table))  # every row has a key of its own
    for row in found:
        assert row["table"] == str(table)
        assert 0 <= float(row["accuracy"]) <= 100
        assert row["training"] in ("natural", "adversarial")
        assert (row["norm"], row["statistics"]) in (BN, BNW, RN, RNT, ("no_norm", "none"))
        assert (row["ci95"] != "") == (table in (2, 3))
        if row["ci95"]:
            assert 0 < float(row["ci95"]) < 11
    assert {row["attack"] for row in found} == ({"clean"} if table == 3 else set(COLUMN_ORDER))


def test_tables_cover_what_the_paper_says():
    assert {key[:2] for key in values(2)} == {("cifar10", "resnet20")}
    assert {key[:2] for key in values(3)} == set(product(DATASETS, ("resnet20",)))
    for table, dataset in ((4, "cifar10"), (5, "cifar100")):
        assert {key[:2] for key in values(table)} == set(product((dataset,), RESNETS + VGGS))
        assert {key[2:4] for key in values(table)} == {BN, BNW, RN, RNT}


# One line of each block as it is printed, so that a shifted column or line shows.
PRINTED = {
    (2, "cifar10", "resnet20", *BN, "natural"): (92.05, 59.16, 33.75, 25.43, 29.73),
    (2, "cifar10", "resnet20", "no_norm", "none", "natural"): (82.93, 66.96, 41.81, 41.47, 37.01),
    (2, "cifar10", "resnet20", *BNW, "natural"): (89.23, 77.65, 53.32, 48.38, 48.54),
    (2, "cifar10", "resnet20", *BN, "adversarial"): (79.53, 67.38, 49.91, 47.90, 46.75),
    (2, "cifar10", "resnet20", "no_norm", "none", "adversarial"): (83.60, 73.75, 63.46, 58.29, 60.01),
    (2, "cifar10", "resnet20", *BNW, "adversarial"): (89.28, 84.36, 72.42, 68.60, 69.30),
    (4, "cifar10", "resnet38", *RNT, "natural"): (92.71, 62.31, 43.46, 38.33, 37.45),
    (4, "cifar10", "resnet38", *RN, "adversarial"): (91.77, 85.57, 77.29, 72.23, 74.23),
    (4, "cifar10", "resnet50", *BNW, "natural"): (90.38, 77.88, 57.36, 51.18, 51.44),
    (4, "cifar10", "resnet50", *BN, "adversarial"): (65.99, 52.33, 30.92, 35.42, 28.40),
    (4, "cifar10", "resnet50", *BNW, "adversarial"): (90.22, 86.29, 78.17, 73.01, 75.21),
    (4, "cifar10", "vgg11", *RN, "natural"): (90.51, 86.69, 29.53, 48.69, 25.71),
    (4, "cifar10", "vgg11", *RN, "adversarial"): (90.81, 87.81, 77.53, 74.2, 74.84),
    (4, *ZEROS): (0, 0, 0, 0, 0),
    (4, "cifar10", "vgg16", *BN, "natural"): (93.56, 66.68, 49.83, 44.52, 44.38),
    (4, "cifar10", "vgg16", *RNT, "adversarial"): (91.20, 75.39, 68.66, 65.28, 65.34),
    (5, "cifar100", "resnet38", *BNW, "natural"): (63.9, 46.65, 27.03, 26.38, 23.06),
    (5, "cifar100", "resnet38", *BN, "adversarial"): (42.54, 30.78, 24.63, 21.88, 22.33),
    (5, "cifar100", "resnet50", *RN, "natural"): (67.88, 46.04, 28.60, 27.98, 25.17),
    (5, "cifar100", "resnet50", *BN, "adversarial"): (25.00, 16.01, 14.21, 12.25, 13.11),
    (5, "cifar100", "vgg11", *BN, "natural"): (69.93, 50.97, 26.88, 30.56, 23.53),
    (5, "cifar100", "vgg11", *RNT, "adversarial"): (64.43, 43.31, 44.67, 41.67, 41.77),
    (5, "cifar100", "vgg16", *RN, "natural"): (72.28, 56.33, 16.65, 28.87, 13.53),
    (5, "cifar100", "vgg16", *RNT, "adversarial"): (68.34, 39.22, 43.89, 34.10, 41.07),
}


@pytest.mark.parametrize("line", PRINTED, ids=lambda line: "-".join(map(str, line)))
def test_values_are_those_printed(line):
    table, *key = line
    found = values(table)
    assert tuple(found[(*key, attack)] for attack in COLUMN_ORDER) == PRINTED[line]


@pytest.mark.parametrize(
    ("table", "sums"),
    [
        (2, (516.62, 429.26, 314.67, 290.07, 291.34)),
        (4, (2743.70, 2359.85, 1779.48, 1707.12, 1642.51)),
        (5, (2030.32, 1418.32, 1020.21, 977.08, 925.09)),
    ],
)
def test_the_columns_add_up(table, sums):
    """Each column of the printed table, added up."""
    found = values(table)
    for attack, total in zip(COLUMN_ORDER, sums, strict=True):
        assert sum(value for key, value in found.items() if key[5] == attack) == pytest.approx(total)


def test_table_3_and_its_intervals():
    found = {tuple(r[c] for c in COLUMNS[1:6]): (float(r["accuracy"]), float(r["ci95"])) for r in rows(3)}
    printed = {
        BN: ((92.11, 0.40), (68.20, 0.8), (79.53, 9.16), (35.39, 3.91)),
        BNW: ((89.07, 1.73), (62.28, 0.79), (89.28, 1.58), (61.73, 4.17)),
        RNT: ((91.97, 0.30), (68.13, 0.28), (85.15, 5.37), (42.19, 6.10)),
        RN: ((91.49, 0.28), (67.41, 0.66), (90.76, 0.63), (64.95, 0.72)),
    }
    places = [(d, t) for t in ("natural", "adversarial") for d in DATASETS]
    for norm, line in printed.items():
        assert tuple(found[(d, "resnet20", *norm, t)] for d, t in places) == line


def test_table_2_intervals():
    found = {tuple(r[c] for c in COLUMNS[3:7]): float(r["ci95"]) for r in rows(2)}
    printed = {
        (*BN, "natural"): (0.34, 6.74, 0.99, 2.37, 0.86),
        ("no_norm", "none", "natural"): (0.64, 4.03, 2.20, 2.16, 2.04),
        (*BNW, "natural"): (1.43, 2.45, 0.71, 1.40, 0.91),
        (*BN, "adversarial"): (9.16, 10.41, 6.30, 5.41, 6.05),
        ("no_norm", "none", "adversarial"): (1.08, 3.95, 1.61, 2.53, 1.54),
        (*BNW, "adversarial"): (1.58, 1.06, 1.04, 0.91, 1.77),
    }
    for norm, line in printed.items():
        assert tuple(found[(*norm, attack)] for attack in COLUMN_ORDER) == line


@pytest.mark.parametrize("training", ["natural", "adversarial"])
def test_removing_tracking_helps_batch_norm_in_every_attack_cell(training):
    assert compare(BNW, BN, training) == (24, 0, 0)


def test_robust_norm_against_batch_norm_without_tracking():
    assert compare(RN, BNW, "natural") == (11, 13, 0)
    assert compare(RN, BNW, "adversarial") == (22, 1, 1)


def test_robust_norm_with_tracking_against_batch_norm():
    assert compare(RNT, BN, "natural") == (15, 9, 0)
    assert compare(RNT, BN, "natural", datasets=["cifar10"]) == (11, 1, 0)
    assert compare(RNT, BN, "natural", datasets=["cifar100"]) == (4, 8, 0)
    # The row of zeros loses its 3 cells: without it 20 of 21.
    assert compare(RNT, BN, "adversarial") == (20, 1 + 3, 0)
    assert all(ALL[(*ZEROS, attack)] == 0 for attack in COLUMN_ORDER)


def test_on_vgg_robust_norm_loses_after_natural_training():
    assert compare(RN, BNW, "natural", VGGS) == (0, 12, 0)
    assert compare(RN, BN, "natural", VGGS) == (3, 9, 0)


def test_pgd_is_weaker_than_bim_in_most_rows_of_adversarial_training():
    assert order_of("pgd_linf", "bim_linf", "adversarial") == (25, 6, 1)  # the tie is the row of zeros
    assert order_of("pgd_linf", "bim_linf", "natural") == (1, 31, 0)


def test_one_step_beats_the_iterative_attack_in_eleven_rows():
    assert order_of("grad_sign", "bim_linf", "natural")[1] == 10
    assert order_of("grad_sign", "bim_linf", "adversarial")[1] == 1
    for training in ("natural", "adversarial"):  # never against PGD: all eleven are against BIM
        assert order_of("grad_sign", "pgd_linf", training)[1] == 0


def test_table_2_gain_from_removing_tracking():
    found = values(2)
    gain = [
        found[("cifar10", "resnet20", *BNW, "natural", attack)]
        - found[("cifar10", "resnet20", *BN, "natural", attack)]
        for attack in ATTACKS
    ]
    assert gain == pytest.approx([19.57, 22.95, 18.81])
