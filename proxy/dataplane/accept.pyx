# cython: language_level=3
"""One call of the kernel for each client that comes, and no object of the `socket` module.

`socket.accept` makes a socket object, asks the kernel for its name and kind, and leaves it blocking: five calls where
one does. Linux's accept4 gives a non-blocking descriptor, and the peer's address with it.
"""

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, errno

import os

cdef extern from "sys/socket.h" nogil:
    """
    #include <netdb.h>
    #include <netinet/in.h>
    #include <sys/socket.h>
    #include <unistd.h>
    """
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        unsigned short sa_family
    cdef struct sockaddr_storage:
        unsigned short ss_family
    int accept4(int fd, sockaddr* address, socklen_t* size, int flags)
    int AF_INET6
    int SOCK_NONBLOCK
    int SOCK_CLOEXEC

cdef extern from "netdb.h" nogil:
    int getnameinfo(
        const sockaddr* address,
        socklen_t size,
        char* host,
        socklen_t host_size,
        char* port,
        socklen_t port_size,
        int flags,
    )
    const char* gai_strerror(int error)
    int NI_NUMERICHOST
    int NI_NUMERICSERV

cdef extern from "unistd.h" nogil:
    int close(int fd)

cdef enum:
    # The longest numeric address, with its scope and its end, and the longest port.
    HOST_BYTES = 128
    PORT_BYTES = 8


def accept_client(int listening):
    """The next client that waits at the non-blocking socket `listening`: its descriptor, non-blocking, and its address
    as `host:port`, IPv6 in brackets. None: nobody waits, or who did has left. Raises OSError.
    """
    cdef sockaddr_storage peer
    cdef socklen_t size = sizeof(peer)
    cdef char host[HOST_BYTES]
    cdef char port[PORT_BYTES]
    cdef int failed
    cdef int fd = accept4(listening, <sockaddr*> &peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        if errno == EAGAIN or errno == EINTR or errno == ECONNABORTED:
            return None
        raise OSError(errno, os.strerror(errno))
    failed = getnameinfo(
        <sockaddr*> &peer, size, host, HOST_BYTES, port, PORT_BYTES, NI_NUMERICHOST | NI_NUMERICSERV
    )
    if failed:
        close(fd)
        raise OSError(gai_strerror(failed).decode())
    if peer.ss_family == AF_INET6:
        return fd, f"[{host.decode()}]:{port.decode()}"
    return fd, f"{host.decode()}:{port.decode()}"
