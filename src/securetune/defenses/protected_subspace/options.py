"""The options of `protected-subspace`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from securetune.config import Fraction, PositiveInt
from securetune.config.base import NOT_SHOWN
from securetune.defenses.protected_subspace.phases import Schedule
from securetune.defenses.protected_subspace.range_finder import RangeFinder
from securetune.defenses.request_options import RequestOptions

_OF_GATHERING = (
    "prompts",
    "categories",
    "max_prompts",
    "max_new_tokens",
    "batch_size",
    "range_finder",
    "sketch_size",
    "seed",
)


class ProtectedSubspaceOptions(RequestOptions):
    """Options of `protected-subspace`, besides the requests that it looks at.

    Attributes:
        energy: Share of the second moment's trace, in [0, 1), that the protected directions hold. 0.9: on tiny world
            it keeps the refusals and learns the task; under an attack on the data it takes 0.95. More leaves less to
            learn with: on a small model of real text 0.9 learns less in the same steps, and 0.97 still less. 0: nothing
            is protected.
        tail_pull: Share in [0, 1] of the update that every step takes back in the first direction beyond the protected
            ones, and in the others in proportion to what they hold. 0: none. With 0.3 and `other_rate: 0` the refusals
            of tiny world withstand four times the steps of an attack that breaks all energies tried. It keeps more
            directions in memory, up to all, and slows learning: a small model of real text learned nothing with it.
        pull_every: Steps from one pull to the next (≥ 1), which then takes back 1 − (1 − share)^pull_every at once, as
            many pulls would; what is left over is pulled after the last step. The protected directions are cut at every
            step all the same. 1: it follows the update most closely; 10 costs a tenth.
        energy_by: `uniform`, or `sensitivity`: more at modules that shift the logit of harm more, from the manifest;
            `energy` is then the mean over the protected modules. On tiny world under an attack on the data it keeps
            more with as many directions. `uniform`: it needs no analysis.
        sensitivity_exponent: How strongly, in [0, 4], with `energy_by: sensitivity`: an unprotected share goes with
            sensitivity to the power of minus this. 0 is `uniform`; 2 leaves the same shift at each module. 1, because
            on tiny world sensitivities differ thirtyfold: with 2 the most sensitive modules would have 0.999.
        phases: Phases and groups of learning rates: of `plain` tuning, `swat` (warm-up of Mods_Rob) or `ml-lr`
            (Mods_Rob faster than the rest), with their settings.
        protect: `all` projections, or the `sensitive` ones alone, those outside Mods_Rob. `all`: on tiny world an
            attack on the data goes through the robust ones where they are left unprotected.
        other_rate: Factor in [0, 1] on the rate that everything that is no projection (embeddings, norms, head) has in
            the phases. 0.1, from an early trial: it is not protected. On tiny world 1 does no harm; 0 freezes it.
        subspaces: Folder that `securetune protect` or an earlier training wrote: its directions are used, up to
            `energy`, instead of gathering. None: they are gathered from the start model before training.
        range_finder: `exact`: the whole second moment of each input, 4·d² bytes for d values; `randomised`: a sketch,
            8·d·(sketch_size + 16) bytes; `auto`: the sketch for inputs of more than 4,096 values.
        sketch_size: Most directions of an input that a sketch holds. 2048: about a fifth of the widest inputs of a 7B
            model; more where `training.json` notes that an energy was not reached.
        seed: Of the sketch's random matrix.
    """

    energy: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    tail_pull: Fraction = 0.0
    pull_every: PositiveInt = 1
    energy_by: Literal["uniform", "sensitivity"] = "uniform"
    sensitivity_exponent: Annotated[float, Field(ge=0.0, le=4.0)] = 1.0
    phases: Schedule = "plain"
    protect: Literal["all", "sensitive"] = "all"
    other_rate: Fraction = 0.1
    subspaces: str | None = None
    range_finder: RangeFinder = "auto"
    sketch_size: PositiveInt = 2048
    seed: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> ProtectedSubspaceOptions:
        given = self.model_fields_set
        if self.tail_pull > 0 and self.energy == 0:
            raise PydanticCustomError(
                NOT_SHOWN, "tail_pull needs protected directions, and energy 0 gives none; set tail_pull to 0"
            )
        if self.pull_every > 1 and self.tail_pull == 0:
            raise PydanticCustomError(NOT_SHOWN, "pull_every does nothing without tail_pull; set it, or leave it out")
        if self.subspaces is not None and (idle := [name for name in _OF_GATHERING if name in given]):
            raise PydanticCustomError(
                NOT_SHOWN, f"must name no {', '.join(idle)} beside subspaces, which are gathered already; leave it out"
            )
        if "sensitivity_exponent" in given and self.energy_by != "sensitivity":
            raise PydanticCustomError(NOT_SHOWN, "sensitivity_exponent does nothing without energy_by: sensitivity")
        return self

    @property
    def of_gathering(self) -> dict[str, object]:
        """What the directions that are gathered depend on, besides the prompts themselves."""
        return {name: getattr(self, name) for name in _OF_GATHERING if name != "prompts"}
