"""Text as tokens and back: sentencepiece, trained once on the training transcripts."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write

KINDS = ("unigram", "bpe", "char", "word")
BLANK, UNKNOWN, BEGIN, END = range(4)


class Tokens:
    """Pieces of text by number, from a sentencepiece model as :meth:`train` writes it.

    The first four numbers are not text: ``BLANK`` (of CTC; pads too), ``UNKNOWN``,
    ``BEGIN`` and ``END`` of a sentence. A file that is no such model, or damaged, raises
    UserError.

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "tokens.model"
    >>> tokens = Tokens.train(["the old man", "a dog", "the dog"], path, 20, "char")
    >>> tokens.decode(tokens.encode("the old dog"))
    'the old dog'
    >>> tokens.unknown("the old cat")
    ['c']
    """

    def __init__(self, path):
        self.path = Path(path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot be read as a sentencepiece model ({error})"
            ) from error
        special = self._processor
        found = (special.pad_id(), special.unk_id(), special.bos_id(), special.eos_id())
        if found != (BLANK, UNKNOWN, BEGIN, END):
            raise UserError(
                f"{path}: pad, unknown, begin and end are the tokens {found}; expected "
                f"{(BLANK, UNKNOWN, BEGIN, END)}, as this project trains its tokenizers"
            )
        try:
            self._processor.IdToPiece(list(range(len(self))))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: is damaged, it holds tokens that are no text in UTF-8; get it "
                "again, or delete it in a run's folder for the run to learn it again"
            ) from error

    @classmethod
    def train(cls, transcripts, path, size: int, kind: str = "unigram") -> Tokens:
        """Learn the tokens of transcripts, write them to a file, and load it.

        `size` includes the four special ones and is reached only if the transcripts have so many;
        `kind` is one of ``KINDS``. UserError if there is no text, or it has more characters than
        `size` tokens can hold.
        """
        if kind not in KINDS:
            raise UserError(f"token_type: is '{kind}'; expected one of: {', '.join(KINDS)}")
        transcripts = sorted(set(transcripts) - {""})
        if not transcripts:
            raise UserError("the training set has no transcripts to learn tokens from")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(transcripts),
                model_writer=model,
                vocab_size=size,
                model_type=kind,
                character_coverage=1.0,
                hard_vocab_limit=False,
                use_all_vocab=kind in ("char", "word"),
                pad_id=BLANK,
                unk_id=UNKNOWN,
                bos_id=BEGIN,
                eos_id=END,
                normalization_rule_name="identity",
                num_threads=1,  # the same tokens on every machine
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"n_tokens: {size} tokens ({kind}) cannot be learnt from "
                f"{len(transcripts)} different transcripts: {reason}"
            ) from error
        atomic_write(path, model.getvalue())
        return cls(path)

    def __len__(self):
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text."""
        return self._processor.EncodeAsIds(text)

    def decode(self, numbers) -> str:
        """The text of pieces.

        Special ones are left out, and numbers beyond them all: a network may have more outputs
        than the transcripts had tokens to learn.
        """
        return self._processor.DecodeIds([int(n) for n in numbers if END < n < len(self)])

    def unknown(self, text: str) -> list[str]:
        """Characters of a text that no token stands for, each once."""
        pieces = zip(self.encode(text), self._processor.EncodeAsPieces(text))
        return list(dict.fromkeys(p.strip("▁") for n, p in pieces if n == UNKNOWN))
