# cython: language_level=3
"""OpenSSL, called from C: contexts out of files, and connections that seal and open bytes.

Knows nothing of descriptors, and nothing of what is wanted (`proxy/tls.py` says that): who has a connection feeds it
what came from the peer, and sends what it has sealed. An established connection reads and writes without any Python
object.

OpenSSL reads what it is fed where it lies, and writes into one buffer that all connections of the process share: each
operation begins with an empty one, so what is sealed has to be taken before the next operation of any connection. An
idle connection keeps no buffer at all (SSL_MODE_RELEASE_BUFFERS).
"""

from libc.string cimport memcpy, strerror
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

import ipaddress
import os

cdef extern from "openssl/opensslv.h":
    unsigned long OPENSSL_VERSION_NUMBER

cdef extern from "openssl/crypto.h":
    unsigned long OpenSSL_version_num()

cdef extern from "openssl/err.h":
    void ERR_clear_error()
    unsigned long ERR_peek_last_error()
    const char* ERR_reason_error_string(unsigned long error)
    int ERR_GET_REASON(unsigned long error)
    int ERR_GET_LIB(unsigned long error)
    int ERR_LIB_SYS
    int ERR_LIB_SSL

cdef extern from "openssl/bio.h":
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    BIO_METHOD* BIO_meth_new(int kind, const char* name)
    int BIO_meth_set_write(BIO_METHOD* method, int (*write)(BIO*, const char*, int) noexcept)
    int BIO_meth_set_read(BIO_METHOD* method, int (*read)(BIO*, char*, int) noexcept)
    int BIO_meth_set_ctrl(BIO_METHOD* method, long (*ctrl)(BIO*, int, long, void*) noexcept)
    int BIO_get_new_index()
    BIO* BIO_new(const BIO_METHOD* method)
    void BIO_set_data(BIO* bio, void* data)
    void* BIO_get_data(BIO* bio)
    void BIO_set_init(BIO* bio, int is_ready)
    void BIO_clear_retry_flags(BIO* bio)
    void BIO_set_retry_read(BIO* bio)
    void BIO_set_retry_write(BIO* bio)
    int BIO_TYPE_SOURCE_SINK
    int BIO_CTRL_FLUSH

cdef extern from "openssl/x509.h":
    ctypedef struct X509:
        pass
    int i2d_X509(X509* certificate, unsigned char** into)
    void X509_free(X509* certificate)

cdef extern from "openssl/x509v3.h":
    ctypedef struct X509_VERIFY_PARAM:
        pass
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM* wanted, const char* name, size_t size)
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM* wanted, const char* address)
    void X509_VERIFY_PARAM_set_hostflags(X509_VERIFY_PARAM* wanted, unsigned int flags)
    const char* X509_verify_cert_error_string(long code)
    int X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
    int X509_V_ERR_HOSTNAME_MISMATCH
    int X509_V_ERR_IP_ADDRESS_MISMATCH

cdef extern from "openssl/ssl.h":
    ctypedef struct SSL_METHOD:
        pass
    const SSL_METHOD* TLS_server_method()
    const SSL_METHOD* TLS_client_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD* method)
    void SSL_CTX_free(SSL_CTX* context)
    unsigned long long SSL_CTX_set_options(SSL_CTX* context, unsigned long long options)
    long SSL_CTX_set_mode(SSL_CTX* context, long mode)
    long SSL_CTX_set_session_cache_mode(SSL_CTX* context, long mode)
    int SSL_CTX_set_num_tickets(SSL_CTX* context, size_t count)
    int SSL_CTX_set_min_proto_version(SSL_CTX* context, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX* context, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX* context, const char* ciphers)
    int SSL_CTX_use_certificate_chain_file(SSL_CTX* context, const char* path)
    int SSL_CTX_use_PrivateKey_file(SSL_CTX* context, const char* path, int form)
    int SSL_CTX_check_private_key(SSL_CTX* context)
    int SSL_CTX_load_verify_locations(SSL_CTX* context, const char* file, const char* folder)
    void SSL_CTX_set_default_passwd_cb(SSL_CTX* context, int (*ask)(char*, int, int, void*) noexcept)
    void SSL_CTX_set_default_passwd_cb_userdata(SSL_CTX* context, void* whose)
    void SSL_CTX_set_verify(SSL_CTX* context, int mode, void* callback)
    int SSL_CTX_set_alpn_protos(SSL_CTX* context, const unsigned char* names, unsigned int size)
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX* context,
        int (*select)(
            SSL*, const unsigned char**, unsigned char*, const unsigned char*, unsigned int, void*
        ) noexcept,
        void* whose,
    )
    int SSL_select_next_proto(
        unsigned char** chosen,
        unsigned char* chosen_size,
        const unsigned char* ours,
        unsigned int ours_size,
        const unsigned char* theirs,
        unsigned int theirs_size,
    )
    SSL* SSL_new(SSL_CTX* context)
    void SSL_free(SSL* ssl)
    void SSL_set_bio(SSL* ssl, BIO* incoming, BIO* outgoing)
    void SSL_set_accept_state(SSL* ssl)
    void SSL_set_connect_state(SSL* ssl)
    int SSL_set_tlsext_host_name(SSL* ssl, const char* name)
    X509_VERIFY_PARAM* SSL_get0_param(SSL* ssl)
    int SSL_do_handshake(SSL* ssl)
    int SSL_read(SSL* ssl, void* into, int size)
    int SSL_write(SSL* ssl, const void* data, int size)
    int SSL_shutdown(SSL* ssl)
    int SSL_get_error(SSL* ssl, int result)
    long SSL_get_verify_result(SSL* ssl)
    X509* SSL_get1_peer_certificate(SSL* ssl)
    void SSL_get0_alpn_selected(SSL* ssl, const unsigned char** name, unsigned int* size)
    const char* SSL_get_version(SSL* ssl)
    const char* SSL_get_cipher_name(SSL* ssl)
    unsigned long long SSL_OP_NO_COMPRESSION
    unsigned long long SSL_OP_NO_RENEGOTIATION
    unsigned long long SSL_OP_NO_TICKET
    unsigned long long SSL_OP_CIPHER_SERVER_PREFERENCE
    long SSL_MODE_RELEASE_BUFFERS
    long SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
    long SSL_SESS_CACHE_OFF
    int SSL_FILETYPE_PEM
    int SSL_VERIFY_NONE
    int SSL_VERIFY_PEER
    int SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    int SSL_ERROR_WANT_READ
    int SSL_ERROR_WANT_WRITE
    int SSL_ERROR_ZERO_RETURN
    int SSL_R_CERTIFICATE_VERIFY_FAILED
    int SSL_TLSEXT_ERR_OK
    int SSL_TLSEXT_ERR_NOACK
    int OPENSSL_NPN_NEGOTIATED

cdef enum:
    # Most bytes sealed by one call of `write`: four records of the greatest length (RFC 8446 section 5.1).
    WRITE_BYTES = 65536
    # Room for their records, however short the peer wants them (at least 512 bytes, RFC 6066 section 4; 85 bytes of TLS
    # 1.2 around each), and for a message of TLS itself before them.
    SEALED_BYTES = 98304

# A Python that carries another OpenSSL and lets its names out would be called instead of ours.
if OpenSSL_version_num() >> 28 != OPENSSL_VERSION_NUMBER >> 28:
    raise ImportError("proxy.openssl was compiled for another OpenSSL than the one this process has")

cdef unsigned char SEALED[SEALED_BYTES]


class OpenSSLError(Exception):
    """What OpenSSL says is wrong, in its words."""


class KeyEncrypted(OpenSSLError):
    """Nobody is there to ask for the password."""


# --- what OpenSSL calls ---

cdef int pipe_read(BIO* bio, char* into, int size) noexcept:
    cdef Pipe* pipe = <Pipe*> BIO_get_data(bio)
    cdef Py_ssize_t took = size if size < pipe.unopened_size else pipe.unopened_size
    BIO_clear_retry_flags(bio)
    if took <= 0:
        BIO_set_retry_read(bio)
        return -1
    memcpy(into, pipe.unopened, took)
    pipe.unopened += took
    pipe.unopened_size -= took
    return <int> took


cdef int pipe_write(BIO* bio, const char* data, int size) noexcept:
    cdef Pipe* pipe = <Pipe*> BIO_get_data(bio)
    cdef Py_ssize_t room = SEALED_BYTES - pipe.sealed_size
    cdef Py_ssize_t gave = size if size < room else room
    BIO_clear_retry_flags(bio)
    if gave <= 0:
        BIO_set_retry_write(bio)
        return -1
    memcpy(SEALED + pipe.sealed_size, data, gave)
    pipe.sealed_size += gave
    return <int> gave


cdef long pipe_ctrl(BIO* bio, int what, long number, void* whatever) noexcept:
    # Whoever took the bytes has them: there is nothing to flush. Nothing else is known here.
    return 1 if what == BIO_CTRL_FLUSH else 0


cdef BIO_METHOD* new_pipes() except NULL:
    cdef BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "pipe")
    if method == NULL:
        raise MemoryError()
    BIO_meth_set_read(method, pipe_read)
    BIO_meth_set_write(method, pipe_write)
    BIO_meth_set_ctrl(method, pipe_ctrl)
    return method


# Lives as long as the process.
cdef BIO_METHOD* PIPES = new_pipes()


cdef int no_password(char* into, int size, int is_writing, void* whose) noexcept:
    """Without this OpenSSL would ask on the terminal."""
    (<Context> whose)._is_key_encrypted = True
    return -1


cdef int choose_alpn(
    SSL* ssl,
    const unsigned char** chosen,
    unsigned char* chosen_size,
    const unsigned char* theirs,
    unsigned int theirs_size,
    void* whose,
) noexcept:
    """The first of ours that they have; none: the handshake goes on, and whoever demands a name looks."""
    cdef bytes ours = (<Context> whose)._alpn
    cdef int found = SSL_select_next_proto(
        <unsigned char**> chosen,
        chosen_size,
        <const unsigned char*> PyBytes_AS_STRING(ours),
        <unsigned int> PyBytes_GET_SIZE(ours),
        theirs,
        theirs_size,
    )
    return SSL_TLSEXT_ERR_OK if found == OPENSSL_NPN_NEGOTIATED else SSL_TLSEXT_ERR_NOACK


cdef str reason_of(unsigned long error):
    cdef const char* text = NULL
    if error == 0:
        return "no reason given"
    if ERR_GET_LIB(error) == ERR_LIB_SYS:
        text = strerror(ERR_GET_REASON(error))
    else:
        text = ERR_reason_error_string(error)
    if text == NULL:
        return f"error {error:#x}"
    return text.decode("ascii", "replace")


cdef object taken_error():
    """An OpenSSLError with the last error; OpenSSL's queue is empty afterwards."""
    cdef str why = reason_of(ERR_peek_last_error())
    ERR_clear_error()
    return OpenSSLError(why)


# --- contexts ---

cdef class Context:
    """What all connections of one kind share. All methods raise OpenSSLError, and are called before the first
    connection. Sessions are never resumed: a resumed one would carry on what was verified before."""

    def __cinit__(self, *, bint is_server):
        self.is_server = is_server
        self._alpn = b""
        ERR_clear_error()
        self._context = SSL_CTX_new(TLS_server_method() if is_server else TLS_client_method())
        if self._context == NULL:
            raise taken_error()
        SSL_CTX_set_options(
            self._context,
            SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE,
        )
        SSL_CTX_set_num_tickets(self._context, 0)
        SSL_CTX_set_session_cache_mode(self._context, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_mode(self._context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)

    def __dealloc__(self):
        SSL_CTX_free(self._context)

    def set_versions(self, int lowest, int highest):
        """As they stand in a record: 0x0303 is TLS 1.2, 0x0304 is 1.3."""
        ERR_clear_error()
        if not (
            SSL_CTX_set_min_proto_version(self._context, lowest)
            and SSL_CTX_set_max_proto_version(self._context, highest)
        ):
            raise taken_error()

    def set_ciphers(self, str ciphers):
        """Of TLS 1.2, in OpenSSL's language; those of 1.3 are OpenSSL's own."""
        cdef bytes text = ciphers.encode()
        ERR_clear_error()
        if not SSL_CTX_set_cipher_list(self._context, PyBytes_AS_STRING(text)):
            raise taken_error()

    def load_certificate(self, certificate, key):
        """What we show: files in PEM, the certificate with its chain. Raises KeyEncrypted besides."""
        cdef bytes certificate_path = os.fsencode(certificate)
        cdef bytes key_path = os.fsencode(key)
        cdef bint is_good
        ERR_clear_error()
        self._is_key_encrypted = False
        SSL_CTX_set_default_passwd_cb(self._context, no_password)
        SSL_CTX_set_default_passwd_cb_userdata(self._context, <void*> self)
        is_good = (
            SSL_CTX_use_certificate_chain_file(self._context, PyBytes_AS_STRING(certificate_path)) == 1
            and SSL_CTX_use_PrivateKey_file(self._context, PyBytes_AS_STRING(key_path), SSL_FILETYPE_PEM) == 1
            and SSL_CTX_check_private_key(self._context) == 1
        )
        if self._is_key_encrypted:
            ERR_clear_error()
            raise KeyEncrypted("the key is encrypted")
        if not is_good:
            raise taken_error()

    def load_ca(self, path):
        """Whom we believe: a file in PEM."""
        cdef bytes name = os.fsencode(path)
        ERR_clear_error()
        if not SSL_CTX_load_verify_locations(self._context, PyBytes_AS_STRING(name), NULL):
            raise taken_error()

    def verify_peer(self, *, bint is_required, bint checks_name=False):
        """Without this call the peer's certificate is not looked at, and none is asked for of a client.

        `is_required`: a client without one is refused. `checks_name`: a server's must have the name or address of the
        connection.
        """
        cdef int mode = SSL_VERIFY_PEER
        if is_required:
            mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        self._checks_name = checks_name
        SSL_CTX_set_verify(self._context, mode, NULL)

    def set_alpn(self, names):
        """Protocols, ours first choice first: offered by a client, chosen from by a server."""
        self._alpn = b"".join([bytes([len(name)]) + name.encode("ascii") for name in names])
        if self.is_server:
            SSL_CTX_set_alpn_select_cb(self._context, choose_alpn, <void*> self)
        elif SSL_CTX_set_alpn_protos(
            self._context,
            <const unsigned char*> PyBytes_AS_STRING(self._alpn),
            <unsigned int> PyBytes_GET_SIZE(self._alpn),
        ):
            raise MemoryError()


# --- connections ---

cdef class Connection:
    """One end of TLS. `feed` it what came, call an operation, send `sealed[:pipe.sealed_size]`, whatever it returned.

    What was fed has to stay where it is while `pipe.unopened_size` is not 0. After FAILED `why` tells, and an alert for
    the peer may be sealed.
    """

    def __cinit__(self, Context context not None, hostname=None):
        """`hostname`: of a server, name or address. Raises ValueError."""
        cdef BIO* bio
        self.why = ""
        self.sealed = SEALED
        # OpenSSL's callbacks point to the context: it must not go before the connection.
        self._context = context
        self._hostname = hostname or ""
        ERR_clear_error()
        self._ssl = SSL_new(context._context)
        if self._ssl == NULL:
            raise taken_error()
        bio = BIO_new(PIPES)
        if bio == NULL:
            raise MemoryError()
        BIO_set_data(bio, &self.pipe)
        BIO_set_init(bio, 1)
        SSL_set_bio(self._ssl, bio, bio)
        if context.is_server:
            SSL_set_accept_state(self._ssl)
        else:
            SSL_set_connect_state(self._ssl)
            self._name_server()

    def __dealloc__(self):
        # With its BIO.
        SSL_free(self._ssl)

    cdef int _name_server(self) except -1:
        """Tell the server which name we want (not an address: RFC 6066 section 3), and have it checked."""
        cdef bytes name = self._hostname.encode("idna")
        cdef X509_VERIFY_PARAM* wanted = SSL_get0_param(self._ssl)
        cdef bint is_address = True
        cdef bint is_good = True
        try:
            ipaddress.ip_address(self._hostname)
        except ValueError:
            is_address = False
        if name and not is_address:
            is_good = SSL_set_tlsext_host_name(self._ssl, PyBytes_AS_STRING(name)) == 1
        if is_good and self._context._checks_name:
            X509_VERIFY_PARAM_set_hostflags(wanted, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)
            if is_address:
                is_good = X509_VERIFY_PARAM_set1_ip_asc(wanted, PyBytes_AS_STRING(name)) == 1
            else:
                # An empty name would switch the check off.
                is_good = name and X509_VERIFY_PARAM_set1_host(wanted, PyBytes_AS_STRING(name), len(name)) == 1
        ERR_clear_error()
        if not is_good:
            raise ValueError(f"{self._hostname!r} is no name of a server")
        return 0

    cdef void feed(self, const unsigned char* data, Py_ssize_t size) noexcept:
        """What came from the peer; what was fed before has been taken."""
        self.pipe.unopened = data
        self.pipe.unopened_size = size

    cdef int _ended(self, int result) except RAISED:
        """Why an operation moved nothing: ENDED, WANTS_BYTES, WANTS_ROOM or FAILED."""
        cdef int how = SSL_get_error(self._ssl, result)
        if how == SSL_ERROR_WANT_READ:
            return WANTS_BYTES
        if how == SSL_ERROR_WANT_WRITE:
            return WANTS_ROOM
        # Whatever else was fed is of no use, and may go.
        self.pipe.unopened_size = 0
        if how == SSL_ERROR_ZERO_RETURN:
            return ENDED
        self.why = self._told()
        ERR_clear_error()
        return FAILED

    cdef str _told(self):
        cdef unsigned long error = ERR_peek_last_error()
        cdef long code
        if ERR_GET_LIB(error) != ERR_LIB_SSL or ERR_GET_REASON(error) != SSL_R_CERTIFICATE_VERIFY_FAILED:
            return reason_of(error)
        code = SSL_get_verify_result(self._ssl)
        if code == X509_V_ERR_HOSTNAME_MISMATCH or code == X509_V_ERR_IP_ADDRESS_MISMATCH:
            return f"the certificate is not valid for {self._hostname!r}"
        return X509_verify_cert_error_string(code).decode("ascii", "replace")

    cdef int shake_hands(self) except RAISED:
        """1 when the handshake is complete, else WANTS_BYTES, WANTS_ROOM or FAILED."""
        cdef int result
        self.pipe.sealed_size = 0
        ERR_clear_error()
        result = SSL_do_handshake(self._ssl)
        if result == 1:
            return 1
        result = self._ended(result)
        if result == ENDED:
            self.why = "the peer left"
            return FAILED
        return result

    cdef Py_ssize_t read(self, unsigned char* into, Py_ssize_t room) except RAISED:
        """The content of at most one record: its size, or how it ended. With nothing left in the pipe and room for a
        whole record, there is no more to read after a record."""
        cdef int got
        self.pipe.sealed_size = 0
        ERR_clear_error()
        got = SSL_read(self._ssl, into, <int> room)
        if got > 0:
            return got
        return self._ended(got)

    cdef Py_ssize_t write(self, const unsigned char* data, Py_ssize_t size) except RAISED:
        """Seal at most WRITE_BYTES of it: how many, or FAILED. Only after the handshake."""
        cdef int wrote
        self.pipe.sealed_size = 0
        ERR_clear_error()
        wrote = SSL_write(self._ssl, data, <int> (size if size < WRITE_BYTES else WRITE_BYTES))
        if wrote > 0:
            return wrote
        if self._ended(wrote) != FAILED:
            self.why = "it cannot be written to now"
        return FAILED

    cdef void say_end(self) noexcept:
        """Seal that no more comes, once and only after the handshake; nothing where that is too late."""
        self.pipe.sealed_size = 0
        SSL_shutdown(self._ssl)
        ERR_clear_error()

    @property
    def version(self):
        """As OpenSSL calls it: TLSv1.3."""
        return SSL_get_version(self._ssl).decode("ascii")

    @property
    def cipher(self):
        """As OpenSSL calls it: TLS_AES_256_GCM_SHA384."""
        return SSL_get_cipher_name(self._ssl).decode("ascii")

    @property
    def selected_alpn(self):
        """The protocol both ends named; empty if there is none."""
        cdef const unsigned char* name = NULL
        cdef unsigned int size = 0
        SSL_get0_alpn_selected(self._ssl, &name, &size)
        return PyBytes_FromStringAndSize(<const char*> name, size).decode("ascii") if size else ""

    @property
    def peer_certificate(self):
        """In DER; None if none was shown. One that was to be verified has been."""
        cdef X509* certificate = SSL_get1_peer_certificate(self._ssl)
        cdef unsigned char* into
        cdef bytes der
        if certificate == NULL:
            return None
        try:
            der = PyBytes_FromStringAndSize(NULL, i2d_X509(certificate, NULL))
            into = <unsigned char*> PyBytes_AS_STRING(der)
            i2d_X509(certificate, &into)
        finally:
            X509_free(certificate)
        return der
