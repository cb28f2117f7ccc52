/* See lwip_socket.h. What is particular to lwIP (2.1.3, as Debian compiles it):

   - Bytes leave the send buffer when the peer has acknowledged them. tcp_write() copies in Debian's build also without
     TCP_WRITE_FLAG_COPY (LWIP_NETIF_TX_SINGLE_PBUF), so up to TCP_SND_BUF bytes, 65535, are there twice.
   - tcp_write() takes at most 65535 bytes, and fails with ERR_MEM if there are too many pbufs (TCP_SND_QUEUELEN),
     although tcp_sndbuf() says that there is room. The next `sent` callback tries again, or, if nothing is under way,
     the `poll` callback.
   - The window opens by tcp_recved(), which is called when bytes leave the receive buffer and not when they arrive: so
     the peer waits for the splice. It takes 16 bits. It sends an update only when the window has grown by
     TCP_WND_UPDATE_THRESHOLD (4 segments); for small receive buffers that is never.
   - Every connection begins with a window of TCP_WND, 65535. For a smaller receive buffer it is taken back after the
     handshake, which RFC 9293 (3.8.6) discourages: make the buffers no smaller.
   - A FIN that does not fit into the peer's window is sent nevertheless, and dropped by a peer that is lwIP: it arrives with
     the retransmission, seconds later.
   - lwIP delays acknowledgements by up to 250 ms. A sender with a small buffer waits for each of them, so that of a short
     segment is sent at once.
   - After the `err` callback the pcb is freed. After tcp_abort() in a callback of the pcb, that callback must return
     ERR_ABRT.
   - tcp_close() sends a reset in place of a FIN if the window is not all open (bytes for which tcp_recved() was not
     called). Afterwards, and in TIME-WAIT, a pcb is freed without a callback: so it must be given up at once.
     tcp_shutdown(pcb, 0, 1) is a half-close; the pcb stays.
   - Only after tcp_close() lwIP refuses bytes with a reset, and ends a FIN-WAIT-2 that takes too long.
   - Memory is malloc()'s in Debian's build (MEM_LIBC_MALLOC, MEMP_MEM_MALLOC): MEM_SIZE and the sizes of pools bound
     nothing. A connection is bounded by its two buffers, TCP_WND and TCP_SND_BUF; their number is not: there is no
     backlog either (TCP_LISTEN_BACKLOG). Received bytes are copied into the receive buffer, and their pbufs freed at once. */

#include "lwip_socket.h"
#include <errno.h>
#include <stdlib.h>

/* What a connection wants of lwIP's thread. */
enum { OUTPUT = 1, RCVD = 2, ABORT = 4, DETACH = 8, RELEASE = 16 };

struct connection {
    struct lwip_sockets *sockets;
    struct sosplice_end *end;
    /* Of lwIP's thread. */
    struct tcp_pcb *pcb;   /* NULL when lwIP has freed it, or it was given up. */
    uint64_t recved;       /* Bytes of the stream that tcp_recved() was called for. */
    size_t in_flight;      /* Bytes at the front of the send buffer that tcp_write() got. */
    bool established, fin_sent, fin_received, detached, released;
    /* Of all threads, with the mutex. */
    unsigned wanted;
    struct connection *next;
};

/* ---- From any thread ---- */

static void want(struct connection *connection, unsigned what) {
    struct lwip_sockets *sockets = connection->sockets;
    pthread_mutex_lock(&sockets->mutex);
    bool is_first = sockets->first == NULL;
    if (connection->wanted == 0) {
        *sockets->last = connection;
        sockets->last = &connection->next;
    }
    connection->wanted |= what;
    pthread_mutex_unlock(&sockets->mutex);
    if (is_first)
        sockets->wake(sockets->context);
}

static void want_output(void *context) {
    want(context, OUTPUT);
}

static void want_rcvd(void *context, int idle) {
    (void)idle; /* see open_window() */
    want(context, RCVD);
}

/* What the program sees of it happens now, what the peer sees later. */
static void want_abort(void *context) {
    struct connection *connection = context;
    want(connection, ABORT);
    sosplice_end_disconnected(connection->end, ECONNABORTED);
    sosplice_end_flush_rcv(connection->end, NULL);
    sosplice_end_flush_snd(connection->end);
}

static void want_detach(void *context) {
    want(context, DETACH);
}

static void want_release(void *context) {
    want(context, RELEASE);
}

static const struct sosplice_protocol PROTOCOL = {
    .size = sizeof(struct sosplice_protocol),
    .name = "lwip",
    .output = want_output,
    .rcvd = want_rcvd,
    .abort = want_abort,
    .detach = want_detach,
    .release = want_release,
};

/* ---- In lwIP's thread ---- */

static bool is_aborted(struct connection *connection) {
    pthread_mutex_lock(&connection->sockets->mutex);
    bool is_aborted = connection->wanted & ABORT;
    pthread_mutex_unlock(&connection->sockets->mutex);
    return is_aborted;
}

/* Frees a connection that neither lwIP nor sosplice uses any more: it is not in the list then. */
static void free_if_unused(struct connection *connection) {
    if (connection->pcb != NULL || !connection->released)
        return;
    sosplice_end_free(connection->end);
    connection->sockets->open--;
    free(connection);
}

/* From here on lwIP calls nothing for this pcb, and does the rest by itself. */
static struct tcp_pcb *give_up(struct connection *connection) {
    struct tcp_pcb *pcb = connection->pcb;
    connection->pcb = NULL;
    tcp_arg(pcb, NULL);
    tcp_recv(pcb, NULL);
    tcp_sent(pcb, NULL);
    tcp_err(pcb, NULL);
    tcp_poll(pcb, NULL, 0);
    return pcb;
}

static void tell_recved(struct connection *connection, uint64_t count) {
    connection->recved += count;
    while (count > 0) {
        u16_t part = count < 0xffff ? (u16_t)count : 0xffff;
        tcp_recved(connection->pcb, part);
        count -= part;
    }
}

/* The window is never larger than the space in the receive buffer, except at first. */
static void open_window(struct connection *connection) {
    struct tcp_pcb *pcb = connection->pcb;
    struct sosplice_state state;
    if (pcb == NULL || sosplice_end_state(connection->end, &state) != 0)
        return;
    uint64_t taken = state.rcv_taken - connection->recved;
    size_t window = pcb->rcv_wnd;
    size_t grows = state.rcv_space > window ? state.rcv_space - window : 0;
    bool is_small = pcb->rcv_ann_wnd < 2 * pcb->mss;
    tell_recved(connection, taken < grows ? taken : grows);
    if (is_small && taken > 0 && grows > 0) {
        tcp_set_flags(pcb, TF_ACK_NOW);
        tcp_output(pcb);
    }
}

static size_t write_part(void *context, const void *data, size_t length) {
    struct tcp_pcb *pcb = context;
    size_t room = tcp_sndbuf(pcb);
    if (length > room)
        length = room;
    if (length == 0 || tcp_write(pcb, data, (u16_t)length, TCP_WRITE_FLAG_COPY) != ERR_OK)
        return 0;
    return length;
}

/* The last bytes of a closed socket, and the FIN, are lwIP's. */
static void close_pcb(struct connection *connection) {
    tell_recved(connection, TCP_WND_MAX(connection->pcb) - connection->pcb->rcv_wnd);
    /* If there is no memory for the FIN, lwIP tries again by itself. */
    tcp_close(give_up(connection));
    sosplice_end_flush_snd(connection->end);
}

static void output(struct connection *connection) {
    struct tcp_pcb *pcb = connection->pcb;
    struct sosplice_state state;
    if (pcb == NULL || !connection->established)
        return;
    size_t written;
    do {
        sosplice_end_read_snd(connection->end, connection->in_flight, tcp_sndbuf(pcb), write_part, pcb, &written);
        connection->in_flight += written;
    } while (written > 0);
    sosplice_end_state(connection->end, &state);
    bool is_end = state.snd_closed && state.snd_len == connection->in_flight;
    if (is_end && connection->detached) {
        close_pcb(connection);
        return;
    }
    if (is_end && !connection->fin_sent)
        connection->fin_sent = tcp_shutdown(pcb, 0, 1) == ERR_OK;
    tcp_output(pcb);
}

static void abort_pcb(struct connection *connection) {
    if (connection->pcb != NULL)
        tcp_abort(give_up(connection));
}

static void detach(struct connection *connection) {
    size_t unread = 0;
    connection->detached = true;
    sosplice_end_flush_rcv(connection->end, &unread);
    if (unread > 0 || !connection->established) {
        sosplice_end_disconnected(connection->end, ECONNABORTED);
        sosplice_end_flush_snd(connection->end);
        abort_pcb(connection);
    } else {
        sosplice_end_cantsendmore(connection->end);
        output(connection);
    }
}

/* When both directions have ended, lwIP frees the pcb without a word. */
static void settle(struct connection *connection) {
    bool is_over = connection->fin_sent && connection->fin_received && connection->in_flight == 0;
    if (connection->pcb != NULL && is_over)
        give_up(connection);
    free_if_unused(connection);
}

static void serve(struct connection *connection, unsigned wanted) {
    if (wanted & ABORT)
        abort_pcb(connection);
    if (wanted & DETACH)
        detach(connection);
    if (wanted & OUTPUT)
        output(connection);
    if (wanted & RCVD)
        open_window(connection);
    if (wanted & RELEASE)
        connection->released = true;
    settle(connection);
}

bool lwip_sockets_run(struct lwip_sockets *sockets) {
    pthread_mutex_lock(&sockets->mutex);
    struct connection *connection = sockets->first;
    bool worked = connection != NULL;
    sockets->first = NULL;
    sockets->last = &sockets->first;
    while (connection != NULL) {
        struct connection *next = connection->next;
        unsigned wanted = connection->wanted;
        connection->next = NULL;
        connection->wanted = 0;
        pthread_mutex_unlock(&sockets->mutex);
        serve(connection, wanted);
        connection = next;
        pthread_mutex_lock(&sockets->mutex);
    }
    pthread_mutex_unlock(&sockets->mutex);
    return worked;
}

/* ---- lwIP's callbacks ---- */

static err_t on_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t error) {
    struct connection *connection = arg;
    (void)error;
    if (p == NULL) {
        connection->fin_received = true;
        sosplice_end_cantrcvmore(connection->end);
        settle(connection);
        return ERR_OK;
    }
    if (connection->detached) {
        pbuf_free(p);
        tcp_abort(give_up(connection));
        sosplice_end_flush_snd(connection->end);
        free_if_unused(connection);
        return ERR_ABRT;
    }
    for (struct pbuf *q = p; q != NULL; q = q->next)
        sosplice_end_append_rcv(connection->end, q->payload, q->len);
    if (p->tot_len < pcb->mss)
        tcp_set_flags(pcb, TF_ACK_NOW);
    pbuf_free(p);
    /* For a program that has shut down reading they count as taken, and rcvd() is not called. */
    open_window(connection);
    return ERR_OK;
}

static err_t on_sent(void *arg, struct tcp_pcb *pcb, u16_t length) {
    struct connection *connection = arg;
    (void)pcb;
    connection->in_flight -= length;
    sosplice_end_drop_snd(connection->end, length);
    output(connection);
    settle(connection);
    return ERR_OK;
}

static err_t on_poll(void *arg, struct tcp_pcb *pcb) {
    (void)pcb;
    output(arg);
    settle(arg);
    return ERR_OK;
}

/* The first window is larger than the receive buffer. */
static void take_window_back(struct connection *connection) {
    struct tcp_pcb *pcb = connection->pcb;
    struct sosplice_state state;
    sosplice_end_state(connection->end, &state);
    if (state.rcv_space >= pcb->rcv_wnd)
        return;
    pcb->rcv_wnd = pcb->rcv_ann_wnd = (tcpwnd_size_t)state.rcv_space;
    pcb->rcv_ann_right_edge = pcb->rcv_nxt + pcb->rcv_wnd;
    tcp_set_flags(pcb, TF_ACK_NOW);
}

static err_t on_connected(void *arg, struct tcp_pcb *pcb, err_t error) {
    struct connection *connection = arg;
    (void)pcb;
    (void)error;
    connection->established = true;
    take_window_back(connection);
    sosplice_end_connected(connection->end);
    output(connection);
    return ERR_OK;
}

static int error_number(const struct connection *connection, err_t error) {
    switch (error) {
    case ERR_CLSD:
        return 0;
    case ERR_RST:
        return connection->established ? ECONNRESET : ECONNREFUSED;
    default:
        return ETIMEDOUT;
    }
}

/* The pcb is freed already. */
static void on_err(void *arg, err_t error) {
    struct connection *connection = arg;
    connection->pcb = NULL;
    if (!is_aborted(connection)) {
        sosplice_end_disconnected(connection->end, error_number(connection, error));
        sosplice_end_flush_snd(connection->end);
    }
    free_if_unused(connection);
}

/* ---- Sockets ---- */

void lwip_sockets_init(struct lwip_sockets *sockets, const struct sosplice *layer, void (*wake)(void *),
                       void *context) {
    sockets->layer = layer;
    sockets->wake = wake;
    sockets->context = context;
    sockets->open = 0;
    pthread_mutex_init(&sockets->mutex, NULL);
    sockets->first = NULL;
    sockets->last = &sockets->first;
}

static int new_connection(struct lwip_sockets *sockets, struct tcp_pcb *pcb, size_t rcv_hiwat, size_t snd_hiwat,
                          int *fd, struct connection **made) {
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL)
        return ENOMEM;
    connection->sockets = sockets;
    connection->pcb = pcb;
    int error = sosplice_socket(sockets->layer, &PROTOCOL, connection, rcv_hiwat, snd_hiwat, &connection->end, fd);
    if (error != 0) {
        free(connection);
        return error;
    }
    sockets->open++;
    tcp_arg(pcb, connection);
    tcp_recv(pcb, on_recv);
    tcp_sent(pcb, on_sent);
    tcp_err(pcb, on_err);
    tcp_poll(pcb, on_poll, 1);
    /* What a splice moves at once is a segment of its own already. */
    tcp_nagle_disable(pcb);
    *made = connection;
    return 0;
}

int lwip_socket_accepted(struct lwip_sockets *sockets, struct tcp_pcb *pcb, size_t rcv_hiwat, size_t snd_hiwat,
                         int *fd) {
    struct connection *connection;
    int error = new_connection(sockets, pcb, rcv_hiwat, snd_hiwat, fd, &connection);
    if (error == 0)
        on_connected(connection, pcb, ERR_OK);
    return error;
}

int lwip_socket_connect(struct lwip_sockets *sockets, struct tcp_pcb *pcb, const ip_addr_t *to, u16_t port,
                        size_t rcv_hiwat, size_t snd_hiwat, int *fd) {
    struct connection *connection;
    int error = new_connection(sockets, pcb, rcv_hiwat, snd_hiwat, fd, &connection);
    if (error != 0) {
        tcp_abort(pcb);
        return error;
    }
    if (tcp_connect(pcb, to, port, on_connected) == ERR_OK)
        return 0;
    /* No route, no port, or no memory: the program sees it at the socket, as a failure that comes later. */
    tcp_abort(give_up(connection));
    sosplice_end_disconnected(connection->end, EHOSTUNREACH);
    return 0;
}
