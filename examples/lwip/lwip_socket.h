/* lwIP's connections (raw API) as sockets of sosplice.

   lwIP belongs to one thread: its own (tcpip_init), or that of a loop. All functions here are called in that thread;
   with lwIP's own thread, other threads must hold LOCK_TCPIP_CORE. The functions of the protocol, which sosplice calls
   from any thread, only enter what they want into a list, and wake the thread. */

#ifndef LWIP_SOCKET_H
#define LWIP_SOCKET_H

#include "lwip/tcp.h"
#include "sosplice.h"
#include <pthread.h>
#include <stdbool.h>

struct connection;

/* The way from other threads into lwIP's. One for all connections; it outlives them. */
struct lwip_sockets {
    const struct sosplice *layer;
    /* Makes lwIP's thread call lwip_sockets_run(), soon. It is called from any thread, must not wait, and must not take
       LOCK_TCPIP_CORE: lwIP's thread may be the caller, and hold it. It may be called more often than needed. */
    void (*wake)(void *context);
    void *context;
    /* Connections, until their last byte is sent. lwIP's thread only. */
    size_t open;
    /* Connections that want something. */
    pthread_mutex_t mutex;
    struct connection *first, **last;
};

void lwip_sockets_init(struct lwip_sockets *sockets, const struct sosplice *layer, void (*wake)(void *),
                       void *context);

/* Does what the connections want. Not inside a callback of lwIP. False if they want nothing. */
bool lwip_sockets_run(struct lwip_sockets *sockets);

/* Makes a socket over a connection that an accept callback got, and stores its descriptor. Until then lwIP owns the
   pcb; afterwards the socket does. Returns 0, or an error number: then the callback returns ERR_MEM, and lwIP resets
   the connection. */
int lwip_socket_accepted(struct lwip_sockets *sockets, struct tcp_pcb *pcb, size_t rcv_hiwat, size_t snd_hiwat, int *fd);

/* Connects, and makes a socket of it at once: it can be spliced while it connects. `pcb` is from tcp_new_ip_type(), and
   bound if that is wanted; it is gone in any case. Returns 0, or an error number. */
int lwip_socket_connect(struct lwip_sockets *sockets, struct tcp_pcb *pcb, const ip_addr_t *to, u16_t port,
                        size_t rcv_hiwat, size_t snd_hiwat, int *fd);

#endif
