/* See pair.h. lwIP is one stack for the whole process, so both interfaces are its own; and it does not send a packet to an
   address of its own. Therefore each interface knows the other one by an address that no interface has, which the link
   translates:

       10.0.0.1 --- to 10.0.0.4  ==  from 10.1.0.2 --- 10.1.0.1

   The sums of both pairs are the same, so that the checksums stay right. */

#include "pair.h"
#include "lwip_socket.h"
#include "lwip/init.h"
#include "lwip/ip.h"
#include "lwip/timeouts.h"
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static const u8_t LEFT[4] = {10, 0, 0, 1}, RIGHT[4] = {10, 1, 0, 1};
static const u8_t RIGHT_FROM_LEFT[4] = {10, 0, 0, 4}, LEFT_FROM_RIGHT[4] = {10, 1, 0, 2};

/* Of lwIP's thread. */
static struct lwip_sockets sockets;
static struct netif left, right;
static struct frame {
    struct frame *next;
    struct pbuf *packet;
    struct netif *to;
} *frames, **last_frame = &frames;
/* SYNs to these ports wait. */
static bool held[0x10000];
static struct frame *held_frames;

static int event;

/* Time that stands still, unless it is set: for lwIP without its thread. */
static bool by_hand;
static u32_t set_now, offset;

/* In the place of lwIP's own. */
u32_t sys_now(void) {
    struct timespec now;
    if (by_hand)
        return set_now + offset;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u32_t)(now.tv_sec * 1000 + now.tv_nsec / 1000000);
}

/* A request of another thread. */
static struct request {
    struct request *next;
    void (*serve)(struct request *);
    size_t rcv_hiwat, snd_hiwat;
    int client, server, number, error;
    bool done;
} *requests, **last_request = &requests;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t is_done = PTHREAD_COND_INITIALIZER;

static void wake(void *context) {
    (void)context;
    uint64_t one = 1;
    if (write(event, &one, sizeof one) < 0 && errno != EAGAIN)
        abort();
}

/* ---- The link ---- */

static void translate(u8_t *header, const u8_t from[4], const u8_t to[4]) {
    memcpy(header + 12, from, 4);
    memcpy(header + 16, to, 4);
}

static err_t link_output(struct netif *netif, struct pbuf *packet, const ip4_addr_t *next_hop) {
    (void)next_hop;
    struct frame *frame = calloc(1, sizeof *frame);
    if (frame == NULL)
        return ERR_MEM;
    frame->packet = pbuf_clone(PBUF_RAW, PBUF_RAM, packet);
    u8_t *header = frame->packet->payload;
    if (netif == &left)
        translate(header, LEFT_FROM_RIGHT, RIGHT);
    else
        translate(header, RIGHT_FROM_LEFT, LEFT);
    frame->to = netif == &left ? &right : &left;
    u8_t *segment = header + 4 * (header[0] & 15);
    if (held[segment[2] << 8 | segment[3]]) {
        frame->next = held_frames;
        held_frames = frame;
    } else {
        *last_frame = frame;
        last_frame = &frame->next;
    }
    return ERR_OK;
}

static bool deliver(void) {
    struct frame *frame = frames;
    if (frame == NULL)
        return false;
    frames = frame->next;
    if (frames == NULL)
        last_frame = &frames;
    if (frame->to->input(frame->packet, frame->to) != ERR_OK)
        pbuf_free(frame->packet);
    free(frame);
    return true;
}

static void release(u16_t port) {
    held[port] = false;
    for (struct frame **at = &held_frames; *at != NULL;) {
        struct frame *frame = *at;
        u8_t *header = frame->packet->payload, *segment = header + 4 * (header[0] & 15);
        if (segment[2] << 8 == (port & 0xff00) && segment[3] == (port & 0xff)) {
            *at = frame->next;
            frame->next = NULL;
            *last_frame = frame;
            last_frame = &frame->next;
        } else {
            at = &frame->next;
        }
    }
}

static err_t link_init(struct netif *netif) {
    netif->name[0] = 'm';
    netif->name[1] = 'm';
    netif->mtu = 1500;
    netif->output = link_output;
    return ERR_OK;
}

static void add(struct netif *netif, const u8_t address[4]) {
    ip4_addr_t own, mask, gateway;
    IP4_ADDR(&own, address[0], address[1], address[2], address[3]);
    IP4_ADDR(&mask, 255, 255, 255, 0);
    ip4_addr_set_zero(&gateway);
    netif_add(netif, &own, &mask, &gateway, NULL, link_init, ip_input);
    netif_set_up(netif);
    netif_set_link_up(netif);
}

/* ---- lwIP's thread ---- */

static void done(struct request *request) {
    pthread_mutex_lock(&mutex);
    request->done = true;
    pthread_cond_broadcast(&is_done);
    pthread_mutex_unlock(&mutex);
}

static bool serve_request(void) {
    pthread_mutex_lock(&mutex);
    struct request *request = requests;
    if (request != NULL) {
        requests = request->next;
        if (requests == NULL)
            last_request = &requests;
    }
    pthread_mutex_unlock(&mutex);
    if (request != NULL)
        request->serve(request);
    return request != NULL;
}

int pair_run(void) {
    bool worked = sys_timeouts_sleeptime() == 0;
    sys_check_timeouts();
    worked |= serve_request();
    worked |= lwip_sockets_run(&sockets);
    return worked | deliver();
}

static void *loop(void *context) {
    (void)context;
    for (;;) {
        while (pair_run())
            continue;
        u32_t sleep = sys_timeouts_sleeptime();
        struct pollfd ready = {.fd = event, .events = POLLIN};
        poll(&ready, 1, sleep == SYS_TIMEOUTS_SLEEPTIME_INFINITE ? -1 : (int)sleep);
        uint64_t count;
        /* Read before the lists are looked at, so that no wake-up is lost. */
        if (ready.revents && read(event, &count, sizeof count) < 0)
            abort();
    }
    return NULL;
}

/* Waits until lwIP's thread is done with it. */
static int ask(struct request *request, void (*serve)(struct request *)) {
    request->serve = serve;
    pthread_mutex_lock(&mutex);
    *last_request = request;
    last_request = &request->next;
    pthread_mutex_unlock(&mutex);
    wake(NULL);
    while (by_hand && !request->done)
        pair_run();
    pthread_mutex_lock(&mutex);
    while (!request->done)
        pthread_cond_wait(&is_done, &mutex);
    pthread_mutex_unlock(&mutex);
    return request->error;
}

static err_t on_accept(void *arg, struct tcp_pcb *pcb, err_t error) {
    struct request *request = arg;
    if (error != ERR_OK || pcb == NULL)
        return ERR_VAL;
    request->error =
        lwip_socket_accepted(&sockets, pcb, request->rcv_hiwat, request->snd_hiwat, &request->server);
    err_t result = request->error == 0 ? ERR_OK : ERR_MEM;
    done(request);
    return result;
}

/* A listener for one connection; it stays, as no port is used twice. */
static void listen_for(struct request *request, u16_t port) {
    struct tcp_pcb *pcb = tcp_new();
    if (tcp_bind(pcb, IP_ANY_TYPE, port) != ERR_OK)
        abort();
    struct tcp_pcb *listener = tcp_listen(pcb);
    tcp_arg(listener, request);
    tcp_accept(listener, on_accept);
}

static u16_t next_port(void) {
    static u16_t port = 1024;
    return ++port;
}

static int dial(struct request *request, u16_t port) {
    ip_addr_t to;
    IP_ADDR4(&to, RIGHT_FROM_LEFT[0], RIGHT_FROM_LEFT[1], RIGHT_FROM_LEFT[2], RIGHT_FROM_LEFT[3]);
    return lwip_socket_connect(&sockets, tcp_new(), &to, port, request->rcv_hiwat, request->snd_hiwat,
                               &request->client);
}

static void serve_connect(struct request *request) {
    u16_t port = next_port();
    listen_for(request, port);
    if ((request->error = dial(request, port)) != 0)
        done(request);
}

static void serve_connecting(struct request *request) {
    u16_t port = next_port();
    held[port] = true;
    request->number = port;
    request->error = dial(request, port);
    done(request);
}

static void serve_complete(struct request *request) {
    bool is_accepted = request->server == 0;
    if (is_accepted)
        listen_for(request, (u16_t)request->number);
    release((u16_t)request->number);
    if (!is_accepted)
        done(request);
}

static void serve_open(struct request *request) {
    request->number = (int)sockets.open;
    done(request);
}

/* ---- From other threads ---- */

void pair_set_time(unsigned milliseconds) {
    set_now = milliseconds;
}

unsigned pair_timeout(void) {
    return sys_timeouts_sleeptime();
}

void pair_start(const struct sosplice *layer, int without_thread) {
    event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    by_hand = without_thread;
    lwip_init();
    add(&left, LEFT);
    add(&right, RIGHT);
    lwip_sockets_init(&sockets, layer, wake, NULL);
    pthread_t thread;
    if (by_hand) {
        /* Timers are due by then, if lwIP asks this clock. */
        offset = sys_timeouts_sleeptime();
        if (sys_timeouts_sleeptime() != 0)
            abort();
        return;
    }
    if (event < 0 || pthread_create(&thread, NULL, loop, NULL) != 0)
        abort();
    pthread_detach(thread);
}

int pair_connect(size_t rcv_hiwat, size_t snd_hiwat, int *client, int *server) {
    struct request request = {.rcv_hiwat = rcv_hiwat, .snd_hiwat = snd_hiwat};
    int error = ask(&request, serve_connect);
    *client = request.client;
    *server = request.server;
    return error;
}

int pair_connecting(int *client) {
    struct request request = {0};
    if (ask(&request, serve_connecting) != 0)
        abort();
    *client = request.client;
    return request.number;
}

int pair_complete(int number, int *server) {
    struct request request = {.number = number, .server = server == NULL ? -1 : 0};
    int error = ask(&request, serve_complete);
    if (server != NULL)
        *server = request.server;
    return error;
}

size_t pair_open(void) {
    struct request request = {0};
    ask(&request, serve_open);
    return (size_t)request.number;
}

static void nothing(void *context) {
    (void)context;
}

static void nothing_read(void *context, int idle) {
    (void)context;
    (void)idle;
}

static int state_of(void *context) {
    return (int)(intptr_t)context;
}

int pair_posed(int state, int *fd) {
    static const struct sosplice_protocol POSED = {
        .size = sizeof POSED,
        .name = "posed",
        .output = nothing,
        .rcvd = nothing_read,
        .abort = nothing,
        .detach = nothing,
        .state = state_of,
    };
    struct sosplice_end *end;
    int error = sosplice_socket(sockets.layer, &POSED, (void *)(intptr_t)state, 100, 100, &end, fd);
    if (error == 0)
        sosplice_end_free(end);
    return error;
}
