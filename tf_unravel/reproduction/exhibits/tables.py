"""Tables 1 to 9 as data: what the paper printed, and which number of which run stands beside it.

"-M" of the paper is meta-trained, "-C" classically trained. Each builder takes (scale, seeds) and gives an Exhibit.
"""

from collections.abc import Iterable, Sequence

from tf_unravel.reproduction.exhibits import published
from tf_unravel.reproduction.exhibits.exhibit import Cell, Claim, Comparison, Exhibit, Number
from tf_unravel.reproduction.exhibits.published import Key
from tf_unravel.reproduction.jobs.measurements import Accuracy, Measurement, Separation, Trial, Tuned
from tf_unravel.reproduction.jobs.scales import MINI_IMAGENET, RunName, Scale
from tf_unravel.reproduction.jobs.timing import Timing, together

MINI, CIFAR = MINI_IMAGENET, "CIFAR-FS"
SHOTS = (1, 5)
NETWORKS = {"R2-D2": "r2d2", "ResNet-12": "resnet12"}
REGULARIZED = {"Classical w/ R_FC": "feature_clustering", "Classical w/ R_HV": "hyperplane_variation"}
TRAININGS = {"R2-D2": "r2d2", "MetaOptNet-SVM": "metaoptnet", "Classical": "classical", **REGULARIZED}
EXTRACTORS = {
    "MetaOptNet-M": ("metaoptnet", "resnet12"), "MetaOptNet-C": ("classical", "resnet12"),
    "R2-D2-M": ("r2d2", "r2d2"), "R2-D2-C": ("classical", "r2d2"),
}
HEADS = {"SVM": "svm", "RR": "ridge", "ProtoNet": "prototypes", "MAML": "fine_tune"}
NO_FORM = "–"
SHORT = "short"  # trainings `reptile@short` and `weight_clustering@short` of a scale
ONE_STANDARD_ERROR = "Intervals are one standard error, here and, but for marked ones, in the paper."
FORMS = ("The paper does not say which form its coefficients belong to; the authors' code has R_FC by pairs and R_HV "
         "squared.")


def _accuracy(scale: Scale, head: str, shots: int, bindings: Sequence[str] = ()) -> Accuracy:
    adapts = head in ("own", "fine_tune")
    return Accuracy(head, shots, scale.adapted_tasks if adapts else scale.tasks, tuple(bindings))


def _numbers(
    runs: Iterable[RunName | None], measurement: Measurement | Timing, quantity: str, factor: float = 1.0
) -> tuple[Number, ...]:
    return tuple(Number(run, measurement, quantity, factor) for run in runs if run is not None)


def _percent(
    scale: Scale, runs: Iterable[RunName | None], head: str, shots: int, bindings: Sequence[str] = ()
) -> tuple[Number, ...]:
    return _numbers(runs, _accuracy(scale, head, shots, bindings), "accuracy", 100.0)


def _fine_tuned(scale: Scale, runs: Iterable[RunName | None], shots: int) -> tuple[Number, ...]:
    """The "MAML" column of Tables 1 and 6."""
    rates = tuple(scale.fine_tune_rates)
    tuned = Tuned(shots, scale.adapted_tasks, rates, scale.trial_tasks, tuple(scale.fine_tune))
    return _numbers(runs, tuned, "accuracy", 100.0)


def _shots(shots: int) -> str:
    return f"{shots}-shot"


def _label(scale: Scale, network: str) -> str:
    """The paper's network, and what stands for it."""
    names = {role: name for name, role in NETWORKS.items()} | {"conv4": "conv4-32"}
    here = scale.networks[network]
    return names[network] if here == names[network] else f"{names[network]} (here {here})"


def _here(scale: Scale, dataset: str) -> str:
    """What stands beside the paper's dataset."""
    return scale.dataset_beside(dataset) or dataset


def _printed_on(scale: Scale) -> str:
    """The paper's dataset of Tables 1, 4, 5, 6 and 9, where they are made on another one here."""
    return MINI if scale.home_beside != MINI else ""


def _elsewhere(scale: Scale) -> tuple[str, ...]:
    """What must be said beside a table that is made on another dataset than the paper's."""
    if not _printed_on(scale):
        return ()
    return (f"The paper has this table of {MINI} alone; ours is of {scale.home_beside}: what the numbers say can be "
            "compared, not the numbers.",)


def _measurable(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Without the cells of datasets and networks that the scale has nothing of."""
    return tuple(cell for cell in cells if cell.numbers)


def _meta_and_classical(scale: Scale, seeds: Sequence[int], shots: int, name: str) -> Exhibit:
    """Tables 1 and 6: four extractors under four fine-tuning algorithms."""
    title = f"Meta-learned and classical extractors under four heads, {shots}-shot"
    printed = published.TABLES[name]
    cells: dict[tuple[str, str], Cell] = {}
    for model, (method, network) in EXTRACTORS.items():
        runs = [scale.run(scale.home_beside, method, network, seed) for seed in seeds]
        for label, head in HEADS.items():
            if head == "fine_tune":
                others = [other for other, role in EXTRACTORS.values() if role == network]
                numbers = _fine_tuned(scale, _of_common_seeds(scale, runs, others, network), shots)
            else:
                numbers = _percent(scale, runs, head, shots)
            cells[model, label] = Cell((model, _label(scale, network)), (label,), printed[model, label], numbers)
    comparisons = tuple(
        Comparison(f"{family}, {label}", cells[f"{family}-M", label], cells[f"{family}-C", label])
        for family in ("MetaOptNet", "R2-D2")
        for label in HEADS
    )
    text = f"Every meta-trained extractor beats the classical one of the same network under every head ({shots}-shot)."
    section = "section 3: \"in all cases\" of Table 1"
    if shots != 1:  # the paper claims it of Table 1 alone, and its own Tables 3 and 6 speak against it
        section, comparisons = "", (*comparisons, *_on_cifar_fs(shots))
    notes = (
        ONE_STANDARD_ERROR,
        "Columns are fine-tuning algorithms; MAML's fine-tunes every weight. Its rate, beside each number, is the best "
        f"of {', '.join(f'{rate:g}' for rate in scale.fine_tune_rates)} on {scale.trial_tasks:,} tasks of the "
        f"validation classes (seed {Trial.seed}), for each trained network and number of shots; the paper does not say "
        "how it was chosen there. The paper's R2-D2-M under SVM equals what its Table 3 takes from the R2-D2 paper.",
    )
    claim = Claim(f"meta beats classical, {shots}-shot", text, comparisons, section)
    return Exhibit(name, title, _measurable(cells.values()), (claim,), (*notes, *_elsewhere(scale)),
                   printed_on=_printed_on(scale))


def _of_common_seeds(
    scale: Scale, runs: Iterable[RunName | None], others: Iterable[str], network: str
) -> list[RunName]:
    """The runs with a seed that every method in `others` is trained with; methods that the scale lacks do not count.

    Fine-tuning a run takes half an hour, and without the others there is nothing to compare it with.
    """
    there = [method for method in others if f"{method}@{network}" in scale.runs]
    return [run for run in runs if run is not None
            and all(scale.run(scale.home_beside, method, network, run.seed) for method in there)]


def _on_cifar_fs(shots: int) -> tuple[Comparison, ...]:
    """Meta-learning against classical training in the paper's CIFAR-FS columns of Table 3; printed numbers alone."""
    rows = (("R2-D2", "R2-D2"), ("MetaOptNet-SVM", "ResNet-12"))

    def cell(training: str, backbone: str) -> Cell:
        return Cell((training, backbone), (CIFAR,), published.TABLE_3[training, backbone, CIFAR, shots], ())

    return tuple(
        Comparison(f"{training}, {CIFAR} (Table 3)", cell(training, backbone), cell("Classical", backbone))
        for training, backbone in rows
    )


def table1(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """Meta-trained and classical extractors under four heads, 1-shot."""
    return _meta_and_classical(scale, seeds, 1, "table1")


def table6(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """Table 1 at 5 shots."""
    return _meta_and_classical(scale, seeds, 5, "table6")


def _separation(
    scale: Scale, seeds: Sequence[int], rows: dict[Key, tuple[str, str, str]], printed: published.Table, classes: str,
    published_digits: int,
) -> tuple[dict[tuple[Key, str, str], Cell], tuple[tuple[str, Number, Number], ...]]:
    """Cells by (row, split, quantity), and r_fc with r_hv of every extractor for the check of their relation.

    Args:
        rows: row -> (the paper's dataset, method, network).
        printed: the paper's numbers.
        classes: the split that they are shown beside.
        published_digits: of the paper's numbers.
    """
    cells, check = {}, []
    for row, (dataset, method, network) in rows.items():
        runs = [scale.run(dataset, method, network, seed) for seed in seeds]
        for split in ("test", "train"):
            measurement = Separation(split, scale.pairs)
            for quantity in ("R_FC", "R_HV"):
                value = printed[row + (quantity,)] if split == classes else None
                numbers = _numbers(runs, measurement, quantity.lower())
                column = (f"{'new' if split == 'test' else 'training'} classes", quantity)
                cells[row, split, quantity] = Cell(
                    (*(str(part) for part in row), _label(scale, network)), column, value, numbers, 3, published_digits
                )
            pairs = zip(_numbers(runs, measurement, "r_fc"), _numbers(runs, measurement, "r_hv"), strict=True)
            name = f"{row[0]}, {_here(scale, dataset)}, {split}"
            check += [(f"{name}, seed {a.run.seed}", a, b) for a, b in pairs]
    return cells, tuple(check)


def table2(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """r_fc and r_hv of meta-trained and classical extractors."""
    rows: dict[Key, tuple[str, str, str]] = {
        (model, dataset): (dataset, *EXTRACTORS[model])
        for dataset in (CIFAR, MINI)
        for model in ("R2-D2-M", "R2-D2-C", "MetaOptNet-M", "MetaOptNet-C")
    }
    cells, check = _separation(scale, seeds, rows, published.TABLE_2, "test", 2)
    comparisons = tuple(
        Comparison(f"{family}, {_here(scale, dataset)}, {quantity}", cells[(f"{family}-M", dataset), "test", quantity],
                   cells[(f"{family}-C", dataset), "test", quantity], sign=-1)
        for dataset in (CIFAR, MINI)
        for family in ("R2-D2", "MetaOptNet")
        for quantity in ("R_FC", "R_HV")
    )
    text = "Meta-trained features have a lower r_fc and a lower r_hv than classical ones of the same network."
    note = "Lower is tighter. The paper does not say on which classes its Table 2 was measured; here beside new ones."
    return Exhibit("table2", "How tightly classes cluster: meta-learned and classical", _measurable(cells.values()),
                   (Claim("meta-learned features cluster", text, comparisons, "section 4.1"),), (note,), check=check)


def table4(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """r_fc and r_hv of MAML's features."""
    rows: dict[Key, tuple[str, str, str]] = {
        ("MAML-1",): (scale.home_beside, "maml_1", "conv4"),
        ("MAML-5",): (scale.home_beside, "maml_5", "conv4"),
        ("MAML-C",): (scale.home_beside, "classical", "conv4"),
    }
    cells, check = _separation(scale, seeds, rows, published.TABLE_4, "train", 4)
    comparisons = tuple(
        Comparison(f"{model}, {quantity}", cells[(model,), "train", quantity], cells[("MAML-C",), "train", quantity])
        for model in ("MAML-1", "MAML-5")
        for quantity in ("R_FC", "R_HV")
    )
    text = "MAML's features separate the training classes worse than classical ones of the same network."
    return Exhibit("table4", "How tightly classes cluster: MAML", _measurable(cells.values()),
                   (Claim("MAML's features cluster less", text, comparisons, "section 4.6"),),
                   ("Lower is tighter. The paper's Table 4 is of its training classes.", *_elsewhere(scale)),
                   check=check, printed_on=_printed_on(scale))


AS_PRINTED = {  # where the form that was chosen is another one
    "Classical w/ R_FC, as printed": ("Classical w/ R_FC", "feature_clustering_batch"),
    "Classical w/ R_HV, as printed": ("Classical w/ R_HV", "hyperplane_variation_printed"),
}


def table3(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """Meta-learning, classical training, and classical training with the two regularizers."""
    cells: dict[Key, Cell] = {}
    rows = {key: (value, TRAININGS[key[0]]) for key, value in published.TABLE_3.items()}
    rows |= {(name, *key[1:]): (value, method) for name, (training, method) in AS_PRINTED.items()
             for key, value in published.TABLE_3.items() if key[0] == training}
    for (training, backbone, dataset, shots), (value, method) in rows.items():
        network = NETWORKS[backbone]
        runs = [scale.run(dataset, method, network, seed) for seed in seeds]
        numbers = _percent(scale, runs, "ridge" if method == "r2d2" else "svm", shots)
        cells[training, backbone, dataset, shots] = Cell(
            (training, _label(scale, network)), (dataset, _shots(shots)), value, numbers
        )
    places = [(backbone, dataset, shots) for backbone in NETWORKS for dataset in (MINI, CIFAR) for shots in SHOTS]

    def against_classical(training: str, backbone: str, dataset: str, shots: int) -> Comparison:
        left, right = cells[training, backbone, dataset, shots], cells["Classical", backbone, dataset, shots]
        return Comparison(f"{backbone}, {_here(scale, dataset)}, {_shots(shots)}", left, right)

    claims = [
        Claim(f"{name} helps", f"{name} raises the accuracy of classical training on new classes.",
              tuple(against_classical(f"Classical w/ {name}", *place) for place in places), section)
        for name, section in (("R_FC", "section 4.4"), ("R_HV", "section 4.5"))
    ]
    claims += [
        Claim(f"{name} helps", f"{name} raises the accuracy of classical training on new classes.",
              tuple(against_classical(training, *place) for place in places), section)
        for training, section in zip(AS_PRINTED, ("section 4.4", "section 4.5"), strict=True)
        if any(cells[(training,) + place].numbers for place in places)
        for name in (f"{training.removeprefix('Classical w/ ')},",)
    ]
    own = {"R2-D2": "R2-D2", "ResNet-12": "MetaOptNet-SVM"}
    claims += [
        Claim(f"meta-learning beats classical training, {shots}-shot",
              f"Meta-learning, under its own head, beats classical training under an SVM ({shots}-shot).",
              tuple(against_classical(own[place[0]], *place) for place in places if place[2] == shots))
        for shots in SHOTS
    ]
    note = "All under an SVM, but R2-D2 under its ridge regression (the paper took that row from the original)."
    return Exhibit("table3", "Classical training with R_FC and R_HV beside meta-learning", _measurable(cells.values()),
                   tuple(claims), (ONE_STANDARD_ERROR, note, _coefficients(scale, cells), FORMS))


def _coefficients(scale: Scale, cells: dict[Key, Cell]) -> str:
    """The coefficients of the regularized rows here with their forms, which need not be the paper's."""
    used: dict[str, None] = {}
    for (training, backbone, *_), cell in cells.items():
        if "w/" in training and cell.numbers:
            run = cell.numbers[0].run
            used[f"{scale.penalty(run)} with {backbone}, {run.dataset}"] = None
    return f"Coefficients here: {', '.join(used)}." if used else ""


def table5(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """Classical training, first-order MAML, Reptile and weight clustering."""
    frameworks = {"Classical": ("classical", "classical"), "FOMAML": ("fomaml_1", "fomaml_5"),
                  "Reptile": ("reptile", "reptile"), "W-Clustering": ("weight_clustering", "weight_clustering")}
    cells: dict[Key, Cell] = {}
    for framework, methods in frameworks.items():
        for shots, method in zip(SHOTS, methods, strict=True):
            others = [each[SHOTS.index(shots)] for each in frameworks.values()]
            found = (scale.run(scale.home_beside, method, "conv4", seed) for seed in seeds)
            runs = _of_common_seeds(scale, found, others, "conv4")
            head, bindings = ("fine_tune", scale.reptile_loop) if method == "classical" else ("own", ())
            numbers = _percent(scale, runs, head, shots, bindings)
            row = (framework, _label(scale, "conv4"))
            cells[framework, shots] = Cell(row, (_shots(shots),), published.TABLE_5[framework, shots], numbers)
    claims = tuple(
        Claim(f"weight clustering beats {name}", f"Reptile with weight clustering is more accurate than {name}.", tuple(
            Comparison(_shots(shots), cells["W-Clustering", shots], cells[name, shots]) for shots in SHOTS
        ), "section 5.1", by_penalty=name == "Reptile")
        for name in ("Reptile", "FOMAML", "Classical")
    )
    note = ("Every method is fine-tuned by its own inner loop, the classical network by Reptile's. The paper's Reptile "
            "row is \"Reptile + Transduction\" of the Reptile paper (without: 47.07 and 62.74), so all rows here are "
            f"transductive: a task's queries are normalised together. {clustering_note(scale, cells.values())}")
    return Exhibit("table5", "Reptile with weight clustering", _measurable(cells.values()), claims,
                   (ONE_STANDARD_ERROR, note, *_elsewhere(scale)), printed_on=_printed_on(scale))


def clustering_note(scale: Scale, cells: Iterable[Cell]) -> str:
    """The coefficients of weight clustering, and what they multiply."""
    runs = dict.fromkeys(number.run for cell in cells for number in cell.numbers if number.run.coefficient is not None)
    used = ", ".join(dict.fromkeys(scale.penalty(run) for run in runs))
    if not used:
        return ""
    return (f"Coefficients here: {used}. One is c = 2 alpha of `learners.reptile`; it weighs less beside the summed "
            "loss of an inner batch (the original code's) than beside the mean.")


def table7(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """Time per epoch and in total."""
    seeds = seeds[:1]  # a seed does not change what a step costs
    cells: dict[Key, Cell] = {}
    for (training, backbone, dataset, quantity), value in published.TABLE_7.items():
        network, row = NETWORKS[backbone], (training, _label(scale, NETWORKS[backbone]))
        own = "r2d2" if network == "r2d2" else "metaoptnet"
        methods = (own, "classical", *REGULARIZED.values())
        group = together([scale.run(dataset, method, network, seeds[0]) for method in methods])
        classical = scale.run(dataset, "classical", network, seeds[0])
        timing = Timing(scale.dataset_beside(dataset) or "", network, group, scale.timing_rounds, classical)
        runs = [scale.run(dataset, TRAININGS[training], network, seed) for seed in seeds]
        column = (dataset, "one epoch, s" if quantity == "epoch" else "all epochs, s")
        cells[training, backbone, dataset, quantity] = Cell(
            row, column, value, _numbers(runs, timing, quantity), 1, published_digits=0
        )
        if quantity == "epoch" and training != "Classical":
            ratio = published.Value(value.mean / published.TABLE_7["Classical", backbone, dataset, quantity].mean)
            cells[training, backbone, dataset, "ratio"] = Cell(
                row, (dataset, "one epoch, times classical"), ratio, _numbers(runs, timing, "ratio")
            )
    comparisons = tuple(
        Comparison(f"{name} / classical, {backbone}, {_here(scale, dataset)}", cells[name, backbone, dataset, "epoch"],
                   cells["Classical", backbone, dataset, "epoch"], at_most=1.1)
        for name in REGULARIZED
        for backbone in NETWORKS
        for dataset in (MINI, CIFAR)
    )
    text = "A regularized epoch costs nearly what a classical one does: at most 1.1 times."
    note = ("Training steps only, taken in turns; an epoch of episodes is what the gin file says. Seconds and ratios "
            "are means over rounds with their standard error; below, medians of the rounds' ratios with the interval "
            "between order statistics. The paper's are GPU times; its ratios are computed from its printed times, "
            "which are rounded to the second or worse. The limit of 1.1 is this project's.")
    return Exhibit("table7", "What training costs", _measurable(cells.values()),
                   (Claim("regularizers are nearly free", text, comparisons, "section 4.4 and Table 7"),), (note,))


def table8(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """The coefficients of R_FC and R_HV under two heads."""
    seeds = seeds if scale.sweeps_repeat else seeds[:1]
    methods = {name.removeprefix("Classical w/ "): method for name, method in REGULARIZED.items()}
    heads = {"NN": "linear", "SVM": "svm"}
    keys = list(published.TABLE_8)
    printed = {key[2] for key in keys}
    further = [c for c in scale.grid if c not in printed]
    keys += [(*key[:2], c, *key[3:]) for c in further for key in keys if key[2] == min(printed)]
    cells = _without_penalty(scale, seeds, heads, dict.fromkeys((key[0], key[4]) for key in keys))
    for backbone, name, coefficient, head, dataset, shots in keys:
        network = NETWORKS[backbone]
        if network not in scale.swept_networks or coefficient not in scale.grid:
            continue
        runs = [scale.run(dataset, methods[name], network, seed, coefficient) for seed in seeds]
        value = published.TABLE_8.get((backbone, name, coefficient, head, dataset, shots))
        form = next((scale.form(run) for run in runs if run is not None), NO_FORM)
        row = (_label(scale, network), name, f"{coefficient:g}", form, head)
        cells.append(Cell(row, (dataset, _shots(shots)), value, _percent(scale, runs, heads[head], shots)))
    note = (f"A coefficient multiplies the raw scatter ratio (R_FC), or the mean over pairs (R_HV). {FORMS} NN: a "
            "linear layer.")
    return Exhibit("table8", "Coefficients of the regularizers", _measurable(cells), (), (ONE_STANDARD_ERROR, note))


def _without_penalty(
    scale: Scale, seeds: Sequence[int], heads: dict[str, str], places: Iterable[tuple[str, str]]
) -> list[Cell]:
    """Classical training beside the grid; the paper prints it in Table 3."""
    cells = []
    for backbone, dataset in places:
        network = NETWORKS[backbone]
        runs = [scale.run(dataset, "classical", network, seed) for seed in seeds if network in scale.swept_networks]
        for label, head in heads.items():
            for shots in SHOTS:
                row = (_label(scale, network), "none", "0", NO_FORM, label)
                numbers = _percent(scale, runs, head, shots)
                cells.append(Cell(row, (dataset, _shots(shots)), None, numbers))
    return cells


def table9(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """The coefficient of weight clustering; below, those beyond the paper's in short trainings with more seeds."""
    strongest = [c for c in scale.sweep if (c, 1) not in published.TABLE_9]
    cells = _clustering_cells(scale, seeds if scale.sweeps_repeat else seeds[:1], "conv4", scale.sweep)
    short = _clustering_cells(scale, scale.short_seeds, SHORT, strongest)
    claims = tuple(
        Claim(f"weight clustering {c:g} beats Reptile",
              f"Weight clustering with c = {c:g} is more accurate than Reptile.",
              tuple(Comparison(_shots(shots), short[c, shots], short[0.0, shots]) for shots in SHOTS), by_penalty=True)
        for c in strongest if short[c, 1].numbers
    )
    shown = _measurable([*cells.values(), *short.values()])
    note = (f"{clustering_note(scale, shown)} The paper's first row is \"Reptile + Transduction\" of the Reptile "
            "paper, not a run of its own.")
    return Exhibit("table9", "Coefficients of weight clustering", shown, claims,
                   (ONE_STANDARD_ERROR, note, *_elsewhere(scale)), printed_on=_printed_on(scale))


def _clustering_cells(
    scale: Scale, seeds: Sequence[int], network: str, coefficients: Iterable[float]
) -> dict[tuple[float, int], Cell]:
    """(coefficient, shots) -> cell, plain Reptile first."""
    cells = {}
    for coefficient in (0.0, *coefficients):
        for shots in SHOTS:
            method, strength = ("weight_clustering", coefficient) if coefficient else ("reptile", None)
            runs = [scale.run(scale.home_beside, method, network, seed, strength) for seed in seeds]
            form = next((scale.form(run) for run in runs if run is not None and strength), NO_FORM)
            name = f"{coefficient:g}" if coefficient else "0 (Reptile)"
            row = (f"{name}, {scale.networks.get(SHORT, '')}" if network == SHORT else name, form)
            value = None if network == SHORT else published.TABLE_9.get((coefficient, shots))
            cells[coefficient, shots] = Cell(row, (_shots(shots),), value, _percent(scale, runs, "own", shots))
    return cells


TABLES = {f"table{number}": builder for number, builder in enumerate(
    (table1, table2, table3, table4, table5, table6, table7, table8, table9), start=1
)}
