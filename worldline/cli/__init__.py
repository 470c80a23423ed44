"""The command `worldline <verb>`: each verb parses, calls one function and prints.

A verb's imports load when it runs, so that `worldline --help` stays fast.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from worldline import __version__
from worldline.cli.caption import add_caption, add_rewrite
from worldline.cli.curate import add_curate
from worldline.cli.data import add_doctor, add_shards
from worldline.cli.edit import add_edits
from worldline.cli.generate import add_generate
from worldline.cli.models import add_convert, add_export, add_info, add_train
from worldline.cli.parser import Parser
from worldline.cli.plan import add_plan
from worldline.cli.scaling import add_scaling
from worldline.cli.serve import add_serve, add_worker
from worldline.cli.verify import add_verify
from worldline.cli.worlds import add_eval, add_worlds
from worldline.errors import EXIT_RESUMABLE, Resumable, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code: 0 done, 1 what was checked is not so, 2 a mistake of the user (one
    line on stderr), 75 stopped and can be resumed, 130 Ctrl-C."""
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(normalised(sys.argv[1:] if argv is None else argv))
        if rest:
            args.parser.unknown(rest)
        code: int | None = args.run(args)
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        return _fail(str(error))
    except Resumable as error:
        return _fail(str(error), code=EXIT_RESUMABLE)
    except BrokenPipeError:  # `worldline ... | head`: the reader left, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}; free some space or choose another place")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _fail("not enough memory; ask for a smaller --size, fewer --seconds or fewer --num-videos")


def _fail(message: str, code: int = 2) -> int:
    print("worldline: " + " ".join(message.split()), file=sys.stderr)
    return code


def normalised(argv: Sequence[str]) -> list[str]:
    """The command line with `--guidance_scale=5` written as `--guidance-scale=5`; words after `--` stay as they are."""
    words, done = [], False
    for word in argv:
        done = done or word == "--"
        name, equals, value = word.partition("=")
        is_flag = not done and name.startswith("--") and " " not in name
        words.append(name.replace("_", "-") + equals + value if is_flag else word)
    return words


def build_parser() -> Parser:
    """The whole command line. Importing nothing heavy keeps `worldline --help` fast."""
    parser = Parser("worldline", description="Text to video, with a verifier that checks what was made.")
    parser.add_argument("--version", action="version", version=f"worldline {__version__}")
    parser.set_defaults(run=lambda args: parser.print_help(), parser=parser)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", parser_class=Parser)
    data = (add_curate, add_caption, add_rewrite, add_shards, add_doctor)
    models = (add_train, add_scaling, add_eval, add_export, add_convert, add_info, add_plan)
    for add in (add_generate, add_edits, add_verify, add_worlds, *data, *models, add_serve, add_worker):
        add(verbs)
    return parser
