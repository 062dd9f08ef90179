"""The application on Ray Serve: replicas of the model, and the front that visitors speak to.

The front and the replicas are deployments of their own, so that a visitor whose replica is lost stays connected: the
front asks another one for the same image, which the seed alone determines, and goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.exceptions import TaskCancelledError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.common.validation import refuse_broken, refuse_missing
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.serve.backend import RayBackend
from drl_dist.jobs.serve.host import ModelHost
from drl_dist.jobs.serve.metrics import Outcome, ReplicaMetrics
from drl_dist.jobs.serve.options import ReplicaOptions, replica_rules
from drl_dist.jobs.serve.pinned import PinnedModel, load_pinned, pin_model
from drl_dist.jobs.serve.token import read_token
from drl_dist.jobs.serve.web.access import Access, digest
from drl_dist.jobs.serve.web.app import create_app
from drl_dist.jobs.serve.web.backend import About, News, ScoredLevel
from drl_dist.serving.requests import Request

LOGGING = LoggingConfig(log_level="ERROR", enable_access_log=False)
"""Addresses that visitors ask for may hold a token. Below an error, Ray Serve tells each visitor's part in a loss."""
_FRONT_STREAMS = 1000
"""Visitors that a front holds at once; what they wait for is bounded by the replicas."""
_HEALTH_SECONDS = 2.0
_ON_THE_HEAD = "node:__internal_head__"
"""Resource that Ray gives the head of every cluster."""
_BESIDES = 16
"""Questions that a replica answers beside its visits: scores, health."""


class ModelReplica:
    """A process that holds the model.

    Args:
        pinned: the weights.
        options: of the server.
    """

    def __init__(self, pinned: PinnedModel, options: ReplicaOptions) -> None:
        device = prepare_device(device_name(options.use_gpu), threads=options.cpus_per_replica)
        model = load_pinned(pinned, options, str(device))
        self._host = ModelHost(
            model,
            # Visitors need not know where it lies.
            name=pinned.address if pinned.address.startswith("models:/") else model.experiment.preset,
            data=options.data,
            max_batch=options.max_batch,
            max_waiting=options.max_waiting,
        )
        self._exit = ExitStack()
        self._exit.enter_context(self._host.running())
        self._metrics = ReplicaMetrics(self._host)

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self._host.is_running:
            raise RuntimeError("the engine has ended")

    def __del__(self) -> None:
        # Not set where the model could not be loaded.
        if "_exit" in self.__dict__:
            self._exit.close()

    async def about(self) -> About:
        """See `Backend.about`."""
        return await self._host.about()

    async def visit(self, request: Request, has_film: bool) -> AsyncGenerator[list[News] | list[UserError], None]:
        """See `ModelHost.bundles`; a refusal is the last thing told, for an error would be written into the log."""
        began = time.monotonic()
        outcome: Outcome = "failed"
        try:
            async with aclosing(self._host.bundles(request, has_film)) as bundles:
                async for bundle in bundles:
                    yield bundle
            outcome = "done"
        except UserError as error:
            outcome = "refused"
            yield [error]
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "left"
            raise
        finally:
            self._metrics.ended(outcome, time.monotonic() - began)

    async def scores(self, image: Tensor, seed: int, label: str | None) -> list[ScoredLevel] | UserError:
        """See `Backend.scores`; a refusal as an answer, as of `visit`."""
        try:
            return await self._host.scores(image, seed, label)
        except UserError as error:
            return error

    async def reference(self) -> list[list[float]] | None:
        """See `Backend.reference`."""
        return await self._host.reference()


class _Leaving:
    """Tells an application that a visitor has left, where Ray Serve lets it fail to hear of anything more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def heard() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, heard, send)


@serve.ingress()
class Front:
    """What visitors speak to.

    Args:
        replicas: handle of `ModelReplica`.
        token_sha256: of the token that visitors must have; None for visitors on this machine alone.
        max_seconds: until an image is given up.
    """

    def __init__(self, replicas: DeploymentHandle[Any], token_sha256: str | None, max_seconds: float) -> None:
        self._backend, self._access, self._max_seconds = RayBackend(replicas), Access(token_sha256), max_seconds

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve."""
        app = create_app(self._backend, self._access, max_seconds=self._max_seconds)
        app.add_middleware(_Leaving)
        return app


def application(pinned: PinnedModel, options: ReplicaOptions, token_sha256: str | None) -> Application:
    """The application of a model; arguments as of `ModelReplica` and `Front`."""
    most = options.max_batch + options.max_waiting
    replicas = serve.deployment(
        name="model",
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.max_batch,
        },
        max_ongoing_requests=most + _BESIDES,
        # Those whose replica is lost wait here for the next one.
        max_queued_requests=most * options.max_replicas + _BESIDES,
        ray_actor_options={"num_cpus": options.cpus_per_replica, "num_gpus": int(options.use_gpu)},
        # A replica that was lost is not replaced before it was asked for its health.
        health_check_period_s=_HEALTH_SECONDS,
        # A visitor whose replica goes is served by another one.
        graceful_shutdown_timeout_s=10,
    )(ModelReplica)
    front = serve.deployment(
        name="front",
        num_replicas=1,
        max_ongoing_requests=_FRONT_STREAMS,
        # Beside the proxy that jobs/serve.py starts, so that the loss of another node is not the end of any stream.
        ray_actor_options={"num_cpus": 0, "resources": {_ON_THE_HEAD: 0.001}},
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=2,
    )(Front)
    return front.bind(replicas.bind(pinned, options), token_sha256, options.max_seconds)


def build(args: dict[str, Any]) -> Application:
    """The application of a Serve config, whose ``args`` are the fields of `ReplicaOptions`.

    Raises:
        UserError: a field cannot be used, or the model cannot be loaded.
    """
    options = _options(args)
    refuse_missing({"model": options.model})
    refuse_broken(replica_rules(options))
    pinned, _ = pin_model(options)
    token = None if options.token_file is None else read_token(options.token_file, create=False)
    return application(pinned, options, None if token is None else digest(token))


def _options(args: dict[str, Any]) -> ReplicaOptions:
    known = ReplicaOptions.__dataclass_fields__
    if unknown := [name for name in args if name not in known]:
        raise UserError(
            f"args of the Serve config, field {unknown[0]}",
            got="a field that does not exist",
            expected=f"one of {', '.join(known)}",
            remedy="correct the config",
        )
    try:
        return TypeAdapter(ReplicaOptions).validate_python(args)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"args of the Serve config, field {'.'.join(str(name) for name in first['loc'])}",
            got=repr(first["input"]),
            expected=first["msg"].removeprefix("Input should be "),
            remedy="correct the config",
        ) from error
