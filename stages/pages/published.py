"""Figures that others published and the report shows beside its own: typed once, here, each with where it is from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a net costs, with as many digits as were published."""

    source: str
    cited: str  # the source, as short as a table needs it
    architecture: str
    size_px: int
    parameters_millions: float
    weights_mb: float
    macs_millions: int
    machine: str
    latency_ms: float
    elsewhere_ms: dict[str, float]  # machine -> latency


@dataclass(frozen=True)
class Pointing:
    """Pointing game on the boxes of ChestX-ray14."""

    source: str
    architecture: str
    size_px: int
    scores: dict[str, float]  # how the maps were made -> mean over eight findings


@dataclass(frozen=True)
class Iobb:
    """Share of boxes of ChestX-ray14 that a class map hits at an IoBB above each threshold."""

    source: str
    cited: str
    thresholds: tuple[float, ...]
    accuracy: dict[str, tuple[float, ...]]  # finding -> one for each threshold


FIGURES: dict[str, Cost | Pointing | Iobb] = {
    "cost": Cost(
        source="arXiv 2305.06244: the abstract; weights and latencies by a review's extract of the paper",
        cited="Termritthikun et al. 2024",
        architecture="EEEA-Net-C2",
        size_px=224,
        parameters_millions=4.7,
        weights_mb=18.3,
        macs_millions=300,
        machine="Intel i7-6700HQ",
        latency_ms=88.4,
        elsewhere_ms={"Apple M1 Pro CPU": 97.0, "Snapdragon 845": 107, "GTX 980 Ti": 5.2},
    ),
    "pointing": Pointing(
        source="not recorded when the figures were noted: find it before quoting them",
        architecture="DenseNet121",
        size_px=512,
        scores={"Grad-CAM": 0.496, "Grad-CAM++": 0.544, "random": 0.228},
    ),
    "iobb": Iobb(
        source="ChestX-ray8, CVPR 2017, arXiv 1705.02315",
        cited="Wang et al. 2017",
        thresholds=(0.1, 0.25, 0.5),
        accuracy={
            "Cardiomegaly": (0.993, 0.979, 0.877),
            "Effusion": (0.712, 0.542, 0.333),
            "Mass": (0.435, 0.282, 0.141),
            "Nodule": (0.165, 0.051, 0.013),
        },
    ),
}
