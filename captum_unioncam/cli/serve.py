"""``captum-unioncam app``."""

from __future__ import annotations

from contextlib import suppress
from time import sleep
from typing import Annotated

import typer

from captum_unioncam.cli import options
from captum_unioncam.system.errors import Failure


def serve(
    model: options.ModelOption = "demo",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, metavar="N", help="Port.", show_default="a free one from 7860 on"),
    ] = None,
) -> None:
    """Serve a demo page: a picture, a network, and the maps of several methods. Ctrl-C ends it.

    Visitors choose among the given network, the embedded one and torchvision's.
    """
    try:
        from captum_unioncam.app.page import served
        from captum_unioncam.app.workbench import Workbench
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise Failure(
            "gradio is missing; install what the command needs with: pip install 'captum-unioncam[app]'"
        ) from error

    with suppress(KeyboardInterrupt), served(Workbench(model, weights, device), host, port) as address:
        typer.echo(f"{address} (Ctrl-C ends it)")
        while True:
            # Windows does not interrupt a wait without a limit.
            sleep(1)
