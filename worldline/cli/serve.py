"""`worldline serve` and `worldline worker`: the Videos API, and an engine that works for one."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from worldline.cli.parser import Parser, Verbs, add_sign_with, add_verb, emit, number
from worldline.errors import UserError
from worldline.media.identity import SIGN_WITH

LOCAL = ("127.0.0.1", "localhost", "::1")
HOURS = "hours that finished files are kept; 0 for good"


def add_serve(verbs: Verbs) -> None:
    parser = add_verb(verbs, "serve", run_serve, "serve OpenAI's Videos API on this machine")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=number("--port", True, "8000"), default=8000, help="port to listen on")
    _add_place(parser)
    add("--api-keys", default=None, metavar="FILE", help="keys, one a line, beside those of WORLDLINE_API_KEYS")
    add(
        "--engines",
        type=number("--engines", True, "1"),
        default=1,
        help="how many to run here; 0 with workers elsewhere",
    )
    add(
        "--queue",
        type=number("--queue", True, "1000"),
        default=1000,
        help="jobs that may wait before clients get a 429",
    )
    add("--max-pixels", type=number("--max-pixels", True, "921600"), default=2048 * 2048, help="of a frame, at most")
    add("--max-seconds", type=number("--max-seconds"), default=120.0, help="of a video, at most")
    add("--max-body", type=number("--max-body", True, "256"), default=256, help="megabytes of an upload, at most")
    add("--fetch-urls", action="store_true", help="fetch pictures from public web addresses that clients name")
    add("--allow-host", action="append", default=[], help="name by which a server without keys may be called")
    add("--insecure", action="store_true", help="listen on any address without API keys")


def add_worker(verbs: Verbs) -> None:
    parser = add_verb(verbs, "worker", run_worker, "run an engine for a server elsewhere: same database, same store")
    _add_place(parser)
    parser.add_argument("--parent", type=int, default=None, help=argparse.SUPPRESS)


def _add_place(parser: Parser) -> None:
    add = parser.add_argument
    add("--data-dir", default="worldline-data", help="folder of jobs, files and what is in work; made if missing")
    add(
        "--database-url",
        default=None,
        metavar="URL",
        help="postgresql://... for several machines, also from WORLDLINE_DATABASE_URL; else SQLite in the data folder",
    )
    add(
        "--store",
        default=None,
        metavar="URL",
        help="where files go, any that fsspec reaches; the data folder unless given",
    )
    add("--model", default=None, help="model folder or hub id; the shipped model unless given")
    add(
        "--batch",
        type=number("--batch", True, "4"),
        default=1,
        help="jobs of one shape that an engine packs into one sequence",
    )
    add("--keep", type=number("--keep", example="24"), default=24.0, metavar="HOURS", help=HOURS)
    add("--moderation", default=None, metavar="MODULE:NAME", help="what judges prompts and frames, see docs/serving.md")
    add_sign_with(parser)


def run_serve(args: argparse.Namespace) -> None:
    """Check everything, then listen until a signal comes."""
    uvicorn = _extra("uvicorn")
    from worldline.generate.request import check_range
    from worldline.serve.settings import Limits

    check_range("--port", args.port, 0, 65535, whole=True)
    check_range("--engines", args.engines, 0, 64, whole=True)
    check_range("--queue", args.queue, 1, 10**6, whole=True)
    check_range("--max-body", args.max_body, 1, 10**5, whole=True)
    limits = Limits(queue=args.queue, pixels=args.max_pixels, seconds=args.max_seconds, body=args.max_body * 10**6)
    settings, model = _opened(args, limits)
    if args.host not in LOCAL and not settings.keys and not args.insecure:
        raise UserError(
            f"--host {args.host}: without API keys anyone could use it; set WORLDLINE_API_KEYS or --api-keys, "
            "or insist with --insecure"
        )
    if os.environ.get(SIGN_WITH):  # engines that cannot sign would end as soon as they start
        from worldline.media.credentials import check_signer

        check_signer()
    from worldline.serve.api import create_app
    from worldline.serve.guard import log_to_stderr
    from worldline.serve.keeper import Engines

    engines = Engines(_engine_command(args), args.engines, settings.database_url) if args.engines else None
    app = create_app(settings, model, engines)
    log_to_stderr()
    data = {"url": f"http://{args.host}:{args.port}/v1", "model": model.name, "data_dir": str(settings.data_dir)}
    emit(args, data, f"{model.name} at {data['url']}, data in {settings.data_dir}")
    sys.stdout.flush()
    uvicorn.run(
        app, host=args.host, port=args.port, log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=5, h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip


def run_worker(args: argparse.Namespace) -> None:
    """One engine until a signal comes."""
    os.nice(10)  # those who ask come first, also while it loads
    _extra("sqlalchemy")
    from worldline.media.credentials import check_signer
    from worldline.serve.guard import log_to_stderr
    from worldline.serve.settings import Limits

    settings, model = _opened(args, Limits())
    check_signer()
    log_to_stderr()
    from worldline.serve.engine import run
    from worldline.serve.work import Painter

    keep = args.keep * 3600 or None
    run(settings, model, Painter(model.folder, settings.limits.upload_bytes), args.batch, keep, args.parent)


def _opened(args: argparse.Namespace, limits: Any) -> tuple[Any, Any]:
    """Settings and model; raises UserError before anything is started."""
    from worldline.generate.request import check_range
    from worldline.serve.orders import Model
    from worldline.serve.settings import LOOPBACK, settings_of

    check_range("--batch", args.batch, 1, 1000, whole=True)
    check_range("--keep", args.keep, 0, 10**6)
    about = {"limits": limits, "moderation": args.moderation}
    about |= {"fetch_urls": getattr(args, "fetch_urls", False)}
    hosts = [getattr(args, "host", ""), *getattr(args, "allow_host", [])]
    about |= {"hosts": (*LOOPBACK, *(host.lower() for host in hosts if host))}
    model = Model(args.model, limits)
    settings = settings_of(args.data_dir, args.database_url, args.store, getattr(args, "api_keys", None), **about)
    return settings, model


def _engine_command(args: argparse.Namespace) -> list[str]:
    """How an engine is started that works for this server and ends with it."""
    command = [sys.executable, "-m", "worldline.cli", "worker", "--parent", str(os.getpid())]
    for name in ("data_dir", "store", "model", "batch", "keep", "moderation"):
        value = getattr(args, name)
        if value is not None:
            command.append(f"--{name.replace('_', '-')}={value}")
    return command


def _extra(name: str) -> Any:
    """A module of the extra `serve`."""
    import importlib

    try:
        importlib.import_module("fastapi")
        return importlib.import_module(name)
    except ImportError:
        raise UserError("serve: needs its extra; pip install 'worldline[serve]'") from None
