"""A process that appends until it is killed or refused; it prints the number of each acknowledged record."""

import os
import sys
import threading

from nacl.signing import SigningKey

from smp_proto.audit.note import VerifierKey
from smp_proto.errors import AuditError
from smpd.audit import AuditLog

SIGNER = SigningKey(bytes(range(32)))


def main(directory: str, threads: int, filler: int) -> None:
    log = AuditLog(
        directory,
        sign=lambda text: SIGNER.sign(text).signature,
        key=VerifierKey("audit.example/box1", bytes(SIGNER.verify_key)),
        pseudonym_key=bytearray(b"p" * 32),
        detail_key=bytearray(b"d" * 32),
        checkpoint_records=7,
    )

    def work(worker: int) -> None:
        while True:
            try:
                seq = log.append("object.open", actor=f"worker{worker}", filler="x" * filler)
            except AuditError as exc:
                os.write(1, f"refused {exc.code} {exc.message}\n".encode())
                return
            os.write(1, f"{seq} {worker}\n".encode())

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
