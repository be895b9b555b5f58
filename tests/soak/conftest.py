"""Long runs with the same servers as the other tests have."""

from tests.engine.conftest import prepared
from tests.stub.conftest import make_model, make_server, stub_engines

__all__ = ["make_model", "make_server", "prepared", "stub_engines"]
