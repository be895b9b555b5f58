"""What becomes of a checkpoint that is whole: a model, or the newer files of one."""

from collections.abc import Callable
from pathlib import Path

from appliance.errors import ConflictError, ModelNotFoundError
from appliance.hub.cache import RepoCache
from appliance.protocol.models import ModelCreate
from appliance.registry.registry import Registry


class PulledModels:
    """Adds them to the registry; `told` hears of each."""

    def __init__(self, registry: Registry, cache: Path, told: Callable[[str], None]) -> None:
        self._registry = registry
        self._cache = cache
        self._told = told

    def check_name(self, model: str, repo: str) -> None:
        """A model of that name from elsewhere is not replaced. Raises ConflictError."""
        try:
            path = Path(self._registry.get(model).settings.path)
        except ModelNotFoundError:
            return
        if RepoCache(root=self._cache, repo=repo).directory not in path.parents:
            raise ConflictError(
                f"There is a model {model!r} already, and it is another one.",
                hint="Choose another name with --name, or forget that one: appliance rm.",
                param="name",
            )

    async def add(self, model: str, repo: str, path: Path) -> None:
        """The model, or its newer checkpoint. Raises ApplianceError."""
        # One of that name may have been added meanwhile.
        self.check_name(model, repo)
        try:
            known = self._registry.get(model)
        except ModelNotFoundError:
            await self._registry.create(ModelCreate(id=model, path=str(path)))
        else:
            if known.settings.path != str(path):
                await self._registry.move(model, path)
            await self._registry.read_again(model)
        self._told(model)
