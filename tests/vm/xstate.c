/* Lets User-mode Linux run on CPUs whose register state is larger than it knows.
 *
 * UML saves and restores the registers of its processes with ptrace(PTRACE_GETREGSET and
 * PTRACE_SETREGSET, NT_X86_XSTATE) and a buffer sized for AVX. On a CPU with AVX-512 or AMX the
 * state is larger. Reading fills what fits; writing less than the whole is refused, and UML panics
 * at boot ("ptrace set fp regs failed"). This library, loaded with LD_PRELOAD, pads what is written
 * to the host's size with zeros, and clears the header's feature bits of the parts that were cut
 * off, so that the kernel gives them their initial values.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define XSTATE_BV 512              /* the header's bitmap of saved features, after fxsave's 512 bytes */
#define KEPT 0x2ffULL              /* x87, SSE, AVX, MPX, AVX-512, PKRU: everything but AMX */

static char whole[1 << 16];        /* UML's kernel has one thread, so one buffer is enough */

long ptrace(enum __ptrace_request request, ...)
{
    static long (*real)(enum __ptrace_request, ...);
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (!real)
        real = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
    if (request != PTRACE_SETREGSET || (uintptr_t)address != NT_X86_XSTATE)
        return real(request, pid, address, data);

    struct iovec *given = data;
    struct iovec host = {whole, sizeof whole};
    if (real(PTRACE_GETREGSET, pid, address, &host) == 0 && host.iov_len > given->iov_len &&
        given->iov_len >= XSTATE_BV + sizeof(uint64_t)) {
        memset(whole + given->iov_len, 0, host.iov_len - given->iov_len);
        memcpy(whole, given->iov_base, given->iov_len);
        uint64_t features;
        memcpy(&features, whole + XSTATE_BV, sizeof features);
        features &= KEPT;
        memcpy(whole + XSTATE_BV, &features, sizeof features);
        return real(request, pid, address, &host);
    }
    return real(request, pid, address, data);
}
