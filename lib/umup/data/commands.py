"""``umup data``: its options and its action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from umup import data
from umup.command import Argument, Option
from umup.data import corpora


@dataclass(frozen=True)
class Data:
    """List, prepare or verify corpora, or print a corpus's data sheet.

    example:
      umup data prepare sotu --tokenizer bpe4096
    """

    action: Annotated[
        Literal["list", "prepare", "verify", "card"],
        Argument("list, prepare, verify, or card: the data sheet"),
    ]
    corpus: Annotated[str, Argument("a name that umup data list shows, or file:PATH")] = "sotu"
    tokenizer: Annotated[str, Option("bytes, or bpe512 to bpe32000", "NAME")] = "bytes"
    max_tokens: Annotated[int | None, Option("token budget of a streamed corpus", "N")] = None
    force: Annotated[bool, Option("prepare again over a changed cache")] = False

    def __call__(self) -> int:
        """Run the command; 1 if ``verify`` finds a problem, else 0."""
        if self.action == "list":
            for entry in corpora.list_table():
                print("  ".join(f"{entry[k]!s}" for k in entry))
        elif self.action == "prepare":
            data.prepare(self.corpus, self.tokenizer, force=self.force, max_tokens=self.max_tokens)
        elif self.action == "verify":
            problems = data.verify(self.corpus, self.tokenizer, max_tokens=self.max_tokens)
            print("\n".join(problems) or f"{self.corpus} as {self.tokenizer} is whole")
            return int(bool(problems))
        else:
            print(data.card(self.corpus, self.tokenizer, max_tokens=self.max_tokens))
        return 0
