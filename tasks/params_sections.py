"""The sections of params.yaml and the values they may have: frozen, typed, nothing unknown, nothing converted.

Select(strategy="margin", batch=20, first_batch=20, control=0.1).batch  ->  20
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Options = dict[str, Any]
Share = Field(ge=0.0, le=1.0)


class Section(BaseModel):
    """A section of params.yaml: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Campaign(Section):
    """Identity and seed."""

    name: str = Field(min_length=1, max_length=100)
    seed: int = Field(ge=0, lt=2**32)

    @field_validator("name")
    @classmethod
    def _can_be_shown(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError(f"{name!r} cannot be shown: no outer spaces, line ends or control signs.")
        return name


class Source(Section):
    """Where images come from."""

    kind: str
    path: str = ""
    options: Options = {}
    watch: bool = True


class Pool(Section):
    """How images are stored and grouped."""

    size: int = Field(ge=1, le=1024)
    mode: Literal["L", "RGB"]
    shard_items: int = Field(10_000, ge=1, le=1_000_000)
    max_pixels: int = Field(100_000_000, ge=1)
    near_duplicate_bits: int = Field(4, ge=-1, le=12)
    near_duplicate_difference: float = Share
    group_cap: int = Field(8, ge=1)


class Holdout(Section):
    """The reserved random sample that every accuracy is measured on."""

    share: float = Field(ge=0.0, lt=1.0)
    labels: int = Field(ge=0)


class Embed(Section):
    """The backbone whose features are cached."""

    backbone: str
    options: Options = {}
    batch: int = Field(64, ge=1)


class Train(Section):
    """The head that is retrained in each iteration."""

    network: str
    options: Options = {}
    folds: int = Field(5, ge=0, le=50)

    @field_validator("folds")
    @classmethod
    def _folds(cls, value: int) -> int:
        if value == 1:
            raise ValueError("0 (off) or at least 2 are needed: one fold leaves nothing to fit on")
        return value


class Select(Section):
    """What is asked about next."""

    strategy: str
    options: Options = {}
    cold_start: str = "kmeans"
    batch: int = Field(ge=1)
    first_batch: int = Field(ge=1)
    control: float = Share
    exclude: tuple[str, ...] = Field((), strict=False)


class Labeling(Section):
    """Who answers."""

    tool: str
    classes: tuple[str, ...] = Field((), strict=False)
    quorum: float = Field(1.0, gt=0.0, le=1.0)
    deadline_hours: float = Field(0.0, ge=0.0)
    overlap: int = Field(1, ge=1, le=100)
    resolution: Literal["first", "latest", "majority"] = "latest"
    minimum_votes: int = Field(1, ge=1, le=100)
    options: Options = {}

    @field_validator("minimum_votes")
    @classmethod
    def _votes_can_be_reached(cls, votes: int, info: ValidationInfo) -> int:
        overlap = info.data.get("overlap", votes)
        if info.data.get("resolution") == "majority" and votes > overlap:
            raise ValueError(f"{votes} votes for one class can never come together: labeling.overlap is {overlap}.")
        return votes

    @field_validator("classes")
    @classmethod
    def _can_be_answered(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for name in classes:
            if name != name.strip() or not name.isprintable() or not name:
                raise ValueError(
                    f"{name!r} cannot be typed as an answer: no empty names, outer spaces or control signs."
                )
        twice = sorted({name for name in classes if classes.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: there more than once.")
        if len(classes) == 1:
            raise ValueError("one class is nothing to learn: give two or more, or [] for the classes the source knows.")
        return classes


class Evaluate(Section):
    """How results are measured."""

    confidence: float = Field(0.95, gt=0.0, lt=1.0)
    resamples: int = Field(1000, ge=10, le=100_000)
    champion_p: float = Field(0.05, gt=0.0, lt=1.0)


class CheckSetting(Section):
    """One check's severity and limits (the limits are the check's keyword options)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    severity: Literal["block", "warn", "off"]

    @property
    def limits(self) -> Options:
        """The limits that params.yaml sets; the rest keep the check's defaults."""
        return dict(self.__pydantic_extra__ or {})


class Stream(Section):
    """Which images of a stream are kept for the pool. A limit of 0 is none."""

    enabled: bool = False
    random_share: float = Field(default=0.01, ge=0.0, le=1.0)
    random_per_hour: int = Field(default=0, ge=0)
    random_per_day: int = Field(default=100, ge=0)
    band: tuple[Annotated[float, Share], Annotated[float, Share]] = Field(default=(0.3, 0.7), strict=False)
    band_share: float = Field(default=1.0, ge=0.0, le=1.0)
    per_hour: int = Field(default=50, ge=0)
    per_day: int = Field(default=200, ge=0)
    per_class_per_day: int = Field(default=50, ge=0)
    total: int = Field(default=0, ge=0)

    @field_validator("band")
    @classmethod
    def _low_to_high(cls, band: tuple[float, float]) -> tuple[float, float]:
        if band[0] > band[1]:
            raise ValueError(f"must be [low, high], not {list(band)}.")
        return band


class Stop(Section):
    """When the campaign ends."""

    labels: int = Field(0, ge=0)
    target: float = Share
    min_gain: float = Field(0.0, ge=0.0, le=1.0)
    patience: int = Field(5, ge=1)


class Track(Section):
    """Where results are shown."""

    tool: str


Event = Literal[
    "finding_blocks",
    "finding_warns",
    "tick_failed",
    "campaign_finished",
    "campaign_stopped",
    "batch_waiting",
    "labels_finished",
    "batch_sent",
    "watchdog",
]


class Alerts(Section):
    """Who hears of what happens."""

    channels: tuple[str, ...] = Field(default=("log", "apprise"), strict=False)
    events: tuple[Event, ...] = Field(
        default=(
            "finding_blocks",
            "finding_warns",
            "tick_failed",
            "campaign_finished",
            "campaign_stopped",
            "batch_waiting",
            "labels_finished",
            "watchdog",
        ),
        strict=False,
    )
    waiting_hours: float = Field(default=48.0, ge=0.0)
    options: dict[str, Options] = {}


class Compute(Section):
    """How much of the machine is used."""

    workers: int = Field(2, ge=1, le=1024)
    threads: int = Field(1, ge=1, le=1024)


class Params(Section):
    """All of params.yaml."""

    campaign: Campaign
    source: Source
    pool: Pool
    holdout: Holdout
    embed: Embed
    train: Train
    select: Select
    labeling: Labeling
    evaluate: Evaluate
    monitor: dict[str, CheckSetting]
    stop: Stop
    track: Track
    alerts: Alerts = Alerts()  # an iteration that was closed before there were alerts has none in its params
    stream: Stream = Stream()  # the same
    compute: Compute
