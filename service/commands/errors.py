"""What a user can do wrong: the exceptions whose message is written for them."""


class CommandError(Exception):
    """An option that cannot be followed; the message says why."""


def user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is written for the user; anything else is a defect of ours."""
    from service.bench import BenchError
    from service.bulk import BulkError
    from service.bundle import (
        BundleError,
        ClassLabelError,
        InputError,
        KeyFileError,
        SeedError,
    )
    from service.client import ClientError
    from service.engines import EngineError
    from service.environment import UnknownVariableError
    from service.http.connections import ConnectionsError
    from service.http.security import KeysError
    from service.listener import ListenError
    from service.observability.tracing import TracingError
    from service.plan import PlanError
    from service.serving.catalogue import ModelRequiredError, UnknownModelError
    from service.serving.default_model import DefaultModelError
    from service.serving.exceptions import ComputeError
    from service.tools.triton_server import TritonServerError
    from service.verify import PngError

    return (
        BenchError,
        BulkError,
        BundleError,
        ClassLabelError,
        ClientError,
        CommandError,
        ComputeError,
        ConnectionsError,
        DefaultModelError,
        EngineError,
        InputError,
        KeyFileError,
        KeysError,
        ListenError,
        ModelRequiredError,
        PlanError,
        PngError,
        SeedError,
        TracingError,
        TritonServerError,
        UnknownModelError,
        UnknownVariableError,
    )
