"""Pictures to disk or to OSS, each whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from sd_cloud.errors import SavingFailed
from sd_cloud.job import Job, Outcome, Picture, Reply
from sd_cloud.oss import SCHEME, Oss, OssAddress
from sd_cloud.outputs.files import write_new, write_whole
from sd_cloud.outputs.large import jpeg_copy
from sd_cloud.outputs.links import Links
from sd_cloud.outputs.names import Name, eas_name, task_name, webui_name
from sd_cloud.outputs.png import CONTENT_TYPES, encodable, encode
from sd_cloud.roots import OWNERS_FOLDER, Roots, owner_folder, resolved
from sd_cloud.settings import Settings

FIELD = "save_dir"


@dataclass(frozen=True)
class Saved:
    """Where a picture is: as the caller is told, and the file itself (None in OSS)."""

    path: str
    link: str
    oss_address: str | None = None


class Outputs:
    """Saves what a job's target asks for, and says where."""

    def __init__(
        self,
        settings: Settings,
        *,
        links: Links | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._settings = settings
        self._roots = Roots.of(settings)
        self._links = links or Links(settings)
        self._oss = Oss(settings.oss)
        self._now = now

    async def save(self, job: Job, outcome: Outcome) -> Outcome:
        """The outcome with each saved picture's ``path`` and ``link`` filled in.

        Raises InputRefused when the target is not allowed, SavingFailed when a file could not be
        written (the files before it stay, and the message names them) or when OSS took none of
        the pictures. A picture that OSS alone did not take gets that as its ``error``.
        """
        if job.target is None or not outcome.pictures:
            return outcome
        return await asyncio.to_thread(self._save, job, outcome)

    async def remove(self, job: Job, outcome: Outcome) -> None:
        """Delete a task's own pictures and kept answer, whose time is over. Pictures that a caller
        named a folder for (EAS' ``save_dir``, the webui's folders) are the caller's and stay."""
        paths = [str(self._reply_file(job))]
        if job.target is not None and job.target.naming == "task":
            paths += [picture.path for picture in outcome.pictures if picture.path]
        await asyncio.to_thread(self._remove, paths)

    async def keep_reply(self, job: Job, reply: Reply) -> str:
        """Keep the answer of a call as a file among its owner's pictures; a link to it.

        Raises SavingFailed.
        """

        def work() -> str:
            file = self._reply_file(job)
            try:
                self._roots.place(file.parent, field=FIELD).mkdir(parents=True, exist_ok=True)
                write_whole(file, reply.body, replaces=True)
            except OSError as error:
                raise SavingFailed(f"{file} could not be written: {error.strerror or error}") from error
            return self._links.sign(file, job.owner)

        return await asyncio.to_thread(work)

    def _reply_file(self, job: Job) -> Path:
        folder = self._settings.outputs_dir / OWNERS_FOLDER / owner_folder(job.owner)
        return folder / f"{quote(job.id, safe='')}_answer.json"

    def _remove(self, paths: list[str]) -> None:
        for path in paths:
            if path.startswith(SCHEME):
                self._oss.delete(OssAddress.parse(path, field=FIELD))
            elif self._roots.holds(resolved(Path(path))):
                Path(path).unlink(missing_ok=True)

    def _save(self, job: Job, outcome: Outcome) -> Outcome:
        assert job.target is not None
        save_dir = job.target.save_dir
        to_oss = save_dir is not None and save_dir.startswith(SCHEME)
        put = self._put_oss(job, str(save_dir)) if to_oss else self._put_file(job, save_dir)
        one_by_one = to_oss or job.dialect == "dashscope"  # whose answer tells each picture's own failure
        done: list[Picture] = []
        for picture, name in zip(outcome.pictures, self._names(job, outcome), strict=True):
            if name is None or picture.image is None:
                done.append(picture)
                continue
            try:
                saved = put(picture, name)
            except SavingFailed as error:
                if not one_by_one:
                    raise _naming_what_stays(error, done) from error
                done.append(replace(picture, error=str(error)))
            else:
                done.append(replace(picture, path=saved.path, link=saved.link, oss_address=saved.oss_address))
        tried = [p for p in done if p.path or p.error]
        if one_by_one and tried and not any(p.path for p in tried):
            field = FIELD if save_dir else None
            raise SavingFailed(tried[0].error or "none of the pictures could be kept", field=field)
        return replace(outcome, pictures=tuple(done))

    def _names(self, job: Job, outcome: Outcome) -> list[Name | None]:
        assert job.target is not None
        moment = self._now()
        names: list[Name | None] = []
        indexes: dict[str, int] = {}
        for picture in outcome.pictures:
            index = indexes.get(picture.role, 0)
            indexes[picture.role] = index + 1
            if picture.image is None or picture.error:
                names.append(None)
            elif job.target.naming == "eas":
                names.append(eas_name(job, picture, moment))
            elif job.target.naming == "task":
                names.append(task_name(job, len(names) + 1))
            else:
                names.append(webui_name(self._settings, job, outcome, picture, index, moment))
        return names

    # -- local disk -----------------------------------------------------------------------------

    def _put_file(self, job: Job, save_dir: str | None) -> Callable[[Picture, Name], Saved]:
        asked = self._settings.outputs_dir / save_dir if save_dir else self._settings.outputs_dir
        field = FIELD if save_dir else None  # a caller who sent none is not told of it
        self._roots.place(asked, field=FIELD)

        def put(picture: Picture, name: Name) -> Saved:
            data = self._encoded(job, picture, name.ending)
            folder = asked / name.folder
            try:
                # Checked before the folder is made and again behind it: a link in between counts.
                self._roots.place(folder, field=FIELD).mkdir(parents=True, exist_ok=True)
                place = self._roots.place(folder, field=FIELD)
                file = write_new(place, name, data)
                if job.target is not None and job.target.naming == "webui":
                    self._put_beside(job, picture, file, len(data))
            except OSError as error:
                raise SavingFailed(
                    f"{folder} could not be written to: {error.strerror or error}", field=field
                ) from error
            told = place / file.name if ".." in folder.parts else folder / file.name
            address = self._oss.mounted_at(told) or self._oss.mounted_at(file)
            return Saved(str(told), self._links.sign(file, job.owner), str(address) if address else None)

        return put

    def _put_beside(self, job: Job, picture: Picture, file: Path, file_bytes: int) -> None:
        """What the options ask for beside a picture: its infotext as a text, a copy of a large one."""
        assert picture.image is not None
        if job.option("save_txt", False) and picture.infotext:
            text = f"{encodable(picture.infotext)}\n".encode()
            write_whole(file.with_suffix(".txt"), text, replaces=True)
        copy = jpeg_copy(job, picture.image, file_bytes)
        if copy is not None and file.suffix != ".jpg":
            data = self._encoded(job, replace(picture, image=copy), "jpg")
            write_whole(file.with_suffix(".jpg"), data, replaces=True)

    # -- OSS ------------------------------------------------------------------------------------

    def _put_oss(self, job: Job, save_dir: str) -> Callable[[Picture, Name], Saved]:
        base = self._oss.allowed(save_dir, field=FIELD)

        def put(picture: Picture, name: Name) -> Saved:
            relative = (name.folder / name.fitted(name.stem)).as_posix()
            address: OssAddress = base / relative
            self._oss.put(address, self._encoded(job, picture, name.ending), CONTENT_TYPES[name.ending])
            link = self._oss.sign(address, self._settings.link_seconds)
            return Saved(str(address), link, str(address))

        return put

    def _encoded(self, job: Job, picture: Picture, ending: str) -> bytes:
        assert picture.image is not None
        return encode(
            picture.image,
            ending,
            picture.infotext if job.option("enable_pnginfo", True) else "",
            quality=int(job.option("jpeg_quality", 80) or 80),
            lossless=bool(job.option("webp_lossless", False)),
        )


def _naming_what_stays(error: SavingFailed, done: list[Picture]) -> SavingFailed:
    kept = [p.path for p in done if p.path]
    if not kept:
        return error
    return SavingFailed(f"{error.args[0]}; saved before it: {', '.join(kept)}", field=error.field)
