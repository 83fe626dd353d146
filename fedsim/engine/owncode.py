"""What a run takes from files of its user's own, loaded once, before anything else is made."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.config import RunConfig, UserData, UserObjective, UserRule, UserSelection
from fedsim.config.user import UserSection
from fedsim.userfiles import UserFiles, UserFunction


@dataclass(frozen=True)
class OwnCode:
    """The functions, None where the configuration names none, and the SHA-256 of their files, as JSON."""

    rule: UserFunction | None = None
    objective: UserFunction | None = None
    selection: UserFunction | None = None
    data: UserFunction | None = None
    sha256: str = ""

    @property
    def names(self) -> list[str]:
        """The functions by their names in the configuration."""
        every = (self.data, self.objective, self.selection, self.rule)
        return [function.name for function in every if function is not None]


NOTHING = OwnCode()


def sections_of(config: RunConfig) -> list[UserSection]:
    """The sections of a configuration that name code of the user's own."""
    every = (config.data, config.training.objective, config.schedule.selection, config.aggregation)
    return [section for section in every if isinstance(section, UserSection)]


def load(config: RunConfig, files: UserFiles) -> OwnCode:
    """The code that a configuration names. Raises ConfigError for what may not or cannot be loaded."""

    def function(section: object, kind: type[UserSection], key: str, n: int, *named: str) -> UserFunction | None:
        if not isinstance(section, kind):
            return None
        return files.load(section.function, key, n, section.options, *named)

    selection = config.schedule.selection
    return OwnCode(
        data=function(config.data, UserData, "data.dataset", 0, "seed", "folder"),
        objective=function(config.training.objective, UserObjective, "training.objective", 1),
        selection=function(selection, UserSelection, "schedule.selection", 3),
        rule=function(config.aggregation, UserRule, "aggregation.rule", 2, "state"),
        sha256=files.sha256(),
    )
