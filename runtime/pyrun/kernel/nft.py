"""nftables: the kernel's packet filter, spoken to in `nft`'s own language.

libnftables is the library the `nft` program is made of: it takes the same text and turns it into
one nfnetlink transaction, which takes effect as a whole or not at all. Called in-process a map
element is added in 0.1 ms, where starting `nft` takes 5 ms. Where the library is missing the
program is used.

`has_chain` asks the kernel directly, with a netlink message of a few bytes: that is cheap enough
for every pod's start. libnftables(3), nft(8).
"""

from __future__ import annotations

import struct

from pyrun.errors import KernelError, Unsupported
from pyrun.kernel import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import CDLL

# linux/netfilter.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETCHAIN = 4
NFTA_CHAIN_TABLE = 1
NFTA_CHAIN_NAME = 3

_library: CDLL | None = None
_spent: int | None = None


def has_chain(family: str, table: str, chain: str) -> bool:
    """Whether that chain exists: NFT_MSG_GETCHAIN, whose body is struct nfgenmsg."""
    nfgenmsg = struct.pack("=BBH", FAMILIES[family], 0, 0)
    names = netlink.text(NFTA_CHAIN_TABLE, table) + netlink.text(NFTA_CHAIN_NAME, chain)
    kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN
    try:
        with netlink.Netlink(netlink.NETLINK_NETFILTER) as connection:
            connection.request(kind, 0, nfgenmsg + names, f"NFT_MSG_GETCHAIN {table} {chain}")
    except OSError as error:
        # ENOENT: no such table or chain. EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT, EINVAL: the
        # kernel has no nfnetlink, no nf_tables, or not this family.
        if error.errno in (2, 93, 95, 97, 22):
            return False
        raise
    return True


def run(commands: str) -> str:
    """Run nft commands as one transaction in the current network namespace; what they print.

    Raises KernelError with nft's own words. Unsupported where neither library nor program is
    installed.
    """
    library = _load()
    if library is None:
        return _run_program(commands)
    # A context belongs to the network namespace it was made in, so each call has its own. It is
    # freed by the next call, or by the exit: closing its socket right after something was deleted
    # would wait until the kernel has freed that, an RCU grace period of 8 to 24 ms.
    global _spent
    if _spent is not None:
        library.nft_ctx_free(_spent)
    context = _spent = library.nft_ctx_new(0)
    library.nft_ctx_buffer_output(context)
    library.nft_ctx_buffer_error(context)
    if library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
        raise _failure(library.nft_ctx_get_error_buffer(context).decode())
    output: bytes = library.nft_ctx_get_output_buffer(context)
    return output.decode()


def _load() -> CDLL | None:
    global _library
    if _library is None:
        import ctypes

        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError:
            return None
        context = ctypes.c_void_p
        library.nft_ctx_new.restype = context
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
        for name in ("buffer_output", "buffer_error", "free"):
            getattr(library, f"nft_ctx_{name}").argtypes = [context]
        for name in ("get_output_buffer", "get_error_buffer"):
            function = getattr(library, f"nft_ctx_{name}")
            function.argtypes, function.restype = [context], ctypes.c_char_p
        library.nft_ctx_free.restype = None
        _library = library
    return _library


def _run_program(commands: str) -> str:
    import subprocess

    try:
        done = subprocess.run(["nft", "-f", "-"], input=commands, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unsupported(
            "cannot set up nftables: neither libnftables.so.1 nor the program nft is installed",
            hint="apt install nftables, or give the pod --network none or host",
        ) from None
    if done.returncode != 0:
        raise _failure(done.stderr)
    return done.stdout


_ERRNOS = {
    "No such file or directory": 2,
    "File exists": 17,
    "Operation not permitted": 1,
    "Operation not supported": 95,
    "Address family not supported by protocol": 97,
    "Protocol not supported": 93,
    "Device or resource busy": 16,
}


def _failure(words: str) -> KernelError:
    """nft tells the errno as its strerror text: `Error: …: File exists`, then the line."""
    lines = [line for line in words.splitlines() if line.strip()]
    first = next((line for line in lines if "Error:" in line), "no message")
    number = next((n for message, n in _ERRNOS.items() if message in words), 22)
    return KernelError(number, f"nft: {first.strip()}")
