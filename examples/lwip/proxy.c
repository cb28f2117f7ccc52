/* A proxy on lwIP: accepts TCP connections from a TAP device, dials a server through the same device, and splices both by
   setsockopt(SO_SPLICE), with the bytes of OpenBSD. From there on the program does nothing: the bytes are moved by worker
   threads, or by the loop if there are none.

       apt-get install liblwip-dev
       make
       ip netns add host
       ip netns exec host ./lwip_proxy tap0 10.7.0.2/24 80 10.7.0.1 8080 &
       ip -n host addr add 10.7.0.1/24 dev tap0; ip -n host link set tap0 up
       ip netns exec host python3 -m http.server 8080 &
       ip netns exec host curl http://10.7.0.2/

   lwIP runs in the thread of a loop (as with NO_SYS), without tcpip_init(); with -t it runs in its own. The one thing to
   get right is that sosplice's worker threads call the protocol: see `wake` and lwip_socket.c. */

#include "lwip_socket.h"
#include "tap.h"
#include "lwip/init.h"
#include "lwip/tcpip.h"
#include "lwip/timeouts.h"
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { DESCRIPTORS = 4096, FRAMES_IN_A_ROW = 64 };

static struct {
    size_t workers, buffer;
    bool own_thread;
    int64_t limit, idle;
    const char *device;
    ip4_addr_t address, mask;
    u16_t port;
    ip_addr_t target;
    u16_t target_port;
} settings = {.workers = 1};

static struct sosplice *layer;
static struct lwip_sockets sockets;
static struct netif netif;
static int event;
static volatile sig_atomic_t is_stopped;

/* ---- Connections ---- */

/* A client's connection and the server's, by both descriptors. */
struct pair {
    int client, server;
    /* Splices that have ended, or could not be set up, of the two. */
    int ended;
    /* One of them by more than the end of its stream. */
    bool is_over;
};

/* Ends come from any thread. */
static pthread_mutex_t pairs_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct pair *pair_of[DESCRIPTORS];
static uint64_t total;

static const char *name_of(int cause) {
    static const char *const NAMES[] = {
        "unspliced",     "limit",       "idle",         "lifetime",    "eof",  "source error", "source closed",
        "sink shutdown", "sink error",  "sink closed",  "pool closed", "loop", "other",
    };
    return NAMES[cause];
}

static void unsplice(int source) {
    sosplice_setsockopt(layer, source, SOSPLICE_SOL_SOCKET, SOSPLICE_SO_SPLICE, NULL, 0);
}

static void close_both(struct pair *pair) {
    sosplice_close(layer, pair->client);
    sosplice_close(layer, pair->server);
    free(pair);
}

/* A splice has ended, or could not be set up. Returns whether it was the second one: then both sockets are the caller's
   to close. Not before: a closed descriptor is given out again at once, and the end of a former splice, reported by
   another thread, would be taken for one of the new connection. */
static bool one_less(struct pair *pair, bool all) {
    pair->is_over |= all;
    if (++pair->ended < 2)
        return false;
    pair_of[pair->client] = pair_of[pair->server] = NULL;
    return true;
}

/* At the end of the first stream the other direction goes on; any other end is that of both. */
static void on_end(void *context, int source, const struct sosplice_ended_splice *ended) {
    (void)context;
    pthread_mutex_lock(&pairs_mutex);
    struct pair *pair = pair_of[source];
    int other = source == pair->client ? pair->server : pair->client;
    total += ended->bytes;
    bool is_last = one_less(pair, ended->cause != SOSPLICE_EOF);
    pthread_mutex_unlock(&pairs_mutex);
    printf("%d: %s after %llu bytes\n", source, name_of(ended->cause), (unsigned long long)ended->bytes);
    if (is_last)
        close_both(pair);
    else if (ended->cause != SOSPLICE_EOF)
        unsplice(other);
}

static int splice(int source, int sink) {
    struct sosplice_splice option = {.sp_fd = sink, .sp_max = settings.limit, .sp_idle_sec = settings.idle};
    return sosplice_setsockopt(layer, source, SOSPLICE_SOL_SOCKET, SOSPLICE_SO_SPLICE, &option, sizeof option);
}

/* The sockets may be spliced while the server's still connects; if it fails, the client gets a reset. */
static void join(int client, int server) {
    struct pair *pair = calloc(1, sizeof *pair);
    if (pair == NULL)
        abort();
    *pair = (struct pair){.client = client, .server = server};
    pthread_mutex_lock(&pairs_mutex);
    pair_of[client] = pair_of[server] = pair;
    pthread_mutex_unlock(&pairs_mutex);
    int error = splice(client, server);
    if (error != 0) {
        pthread_mutex_lock(&pairs_mutex);
        one_less(pair, true);
        pthread_mutex_unlock(&pairs_mutex);
    } else {
        error = splice(server, client);
    }
    pthread_mutex_lock(&pairs_mutex);
    /* While the second splice is under way, or if it could not be set up, the pair is still there. */
    bool is_last = error != 0 && one_less(pair, true);
    bool is_over = !is_last && (error != 0 || pair_of[server] == pair) && pair->is_over;
    pthread_mutex_unlock(&pairs_mutex);
    if (error != 0) {
        fprintf(stderr, "cannot splice: %s\n", strerror(error));
        sosplice_abort(layer, client);
        sosplice_abort(layer, server);
    }
    if (is_last)
        close_both(pair);
    else if (is_over)
        unsplice(error != 0 ? client : server);
}

/* In lwIP's thread. */
static err_t on_accept(void *arg, struct tcp_pcb *pcb, err_t error) {
    (void)arg;
    int client, server;
    if (error != ERR_OK || pcb == NULL)
        return ERR_VAL;
    if (lwip_socket_accepted(&sockets, pcb, settings.buffer, settings.buffer, &client) != 0)
        return ERR_MEM;
    struct tcp_pcb *out = tcp_new_ip_type(IP_GET_TYPE(&settings.target));
    if (out == NULL || lwip_socket_connect(&sockets, out, &settings.target, settings.target_port, settings.buffer,
                                           settings.buffer, &server) != 0) {
        sosplice_abort(layer, client);
        sosplice_close(layer, client);
        return ERR_OK;
    }
    join(client, server);
    return ERR_OK;
}

static void listen_there(void) {
    struct tcp_pcb *pcb = tcp_new();
    if (pcb == NULL || tcp_bind(pcb, IP_ANY_TYPE, settings.port) != ERR_OK || (pcb = tcp_listen(pcb)) == NULL) {
        fprintf(stderr, "cannot listen at port %u\n", settings.port);
        exit(1);
    }
    tcp_accept(pcb, on_accept);
}

static void open_device(netif_input_fn input, int *tap) {
    *tap = tap_open(settings.device, &netif, &settings.address, &settings.mask, input);
    if (*tap < 0) {
        fprintf(stderr, "cannot open %s: %s\n", settings.device, strerror(errno));
        exit(1);
    }
    listen_there();
    puts("listening");
}

/* ---- A loop of one's own: lwIP in this thread ---- */

static void wake_loop(void *context) {
    (void)context;
    uint64_t one = 1;
    /* It fails if the counter is full, and then the loop is awake. */
    if (write(event, &one, sizeof one) < 0)
        return;
}

static void clear_event(void) {
    uint64_t count;
    if (read(event, &count, sizeof count) < 0)
        return;
}

/* All that can be done now. The event is cleared before, so that no wake-up is lost. */
static void work(void) {
    do {
        sys_check_timeouts();
        lwip_sockets_run(&sockets);
    } while (settings.workers == 0 && sosplice_run(layer) == 1);
}

static int next_timeout(void) {
    u32_t lwip = sys_timeouts_sleeptime();
    int own = sosplice_timeout(layer);
    if (lwip == SYS_TIMEOUTS_SLEEPTIME_INFINITE)
        return own;
    return own >= 0 && own < (int)lwip ? own : (int)lwip;
}

static void turn(int tap) {
    struct pollfd ready[] = {{.fd = tap, .events = POLLIN}, {.fd = event, .events = POLLIN}};
    poll(ready, 2, next_timeout());
    clear_event();
    if (tap_receive(tap, &netif, FRAMES_IN_A_ROW) < 0)
        is_stopped = 2; /* the device is gone */
    work();
}

/* Ends all splices, and with them all connections. No further one comes meanwhile: this is lwIP's thread. */
static void end_all(void) {
    for (int source = 0; source < DESCRIPTORS; source++) {
        pthread_mutex_lock(&pairs_mutex);
        bool is_spliced = pair_of[source] != NULL;
        pthread_mutex_unlock(&pairs_mutex);
        if (is_spliced)
            unsplice(source);
    }
}

static void run_loop(void) {
    int tap;
    lwip_init();
    open_device(netif_input, &tap);
    while (!is_stopped)
        turn(tap);
    end_all();
    /* What is left are bytes that the peers have not acknowledged. A second signal ends the wait. */
    while (sockets.open > 0 && is_stopped == 1)
        turn(tap);
    /* Not before: on_end() uses the layer, in any thread. */
    if (sockets.open == 0)
        sosplice_free(layer);
}

/* ---- lwIP's own thread ---- */

static struct tcpip_callback_msg *message;

static void serve(void *context) {
    (void)context;
    lwip_sockets_run(&sockets);
}

/* If the mailbox is full, the receiving thread waits for room, and not this one: it may be lwIP's. */
static void wake_thread(void *context) {
    if (tcpip_callbackmsg_trycallback(message) != ERR_OK)
        wake_loop(context);
}

static void start(void *context) {
    open_device(tcpip_input, context);
}

static void run_thread(void) {
    int tap = -1;
    tcpip_init(NULL, NULL);
    message = tcpip_callbackmsg_new(serve, NULL);
    LOCK_TCPIP_CORE();
    start(&tap);
    UNLOCK_TCPIP_CORE();
    while (!is_stopped) {
        struct pollfd ready[] = {{.fd = tap, .events = POLLIN}, {.fd = event, .events = POLLIN}};
        poll(ready, 2, -1);
        if (ready[1].revents) {
            clear_event();
            tcpip_callback(serve, NULL);
        }
        if (tap_receive(tap, &netif, FRAMES_IN_A_ROW) < 0)
            return;
    }
}

/* ---- Start ---- */

static void on_signal(int signal) {
    (void)signal;
    is_stopped++;
    wake_loop(NULL);
}

static void usage(void) {
    fprintf(stderr, "usage: lwip_proxy [-t] [-w WORKERS] [-b BUFFER] [-l LIMIT] [-i IDLE] "
                    "TAP ADDRESS/BITS PORT TARGET TARGET-PORT\n"
                    "  -t  lwIP in its own thread\n"
                    "  -w  threads that move bytes (1); 0: the loop does\n"
                    "  -b  bytes of each socket buffer (262144)\n"
                    "  -l  bytes after which a direction ends\n"
                    "  -i  seconds without a byte after which a direction ends\n");
    exit(2);
}

static void read_settings(int count, char **arguments) {
    int option;
    while ((option = getopt(count, arguments, "tw:b:l:i:")) != -1) {
        switch (option) {
        case 't':
            settings.own_thread = true;
            break;
        case 'w':
            settings.workers = strtoul(optarg, NULL, 10);
            break;
        case 'b':
            settings.buffer = strtoul(optarg, NULL, 10);
            break;
        case 'l':
            settings.limit = strtoll(optarg, NULL, 10);
            break;
        case 'i':
            settings.idle = strtoll(optarg, NULL, 10);
            break;
        default:
            usage();
        }
    }
    if (count - optind != 5 || (settings.own_thread && settings.workers == 0))
        usage();
    char **words = arguments + optind;
    char *slash = strchr(words[1], '/');
    unsigned long bits = slash == NULL ? 0 : strtoul(slash + 1, NULL, 10);
    if (bits < 1 || bits > 32)
        usage();
    *slash = 0;
    ip4_addr_set_u32(&settings.mask, lwip_htonl(0xffffffffu << (32 - bits)));
    settings.device = words[0];
    settings.port = (u16_t)strtoul(words[2], NULL, 10);
    settings.target_port = (u16_t)strtoul(words[4], NULL, 10);
    if (!ip4addr_aton(words[1], &settings.address) || !ipaddr_aton(words[3], &settings.target))
        usage();
}

int main(int count, char **arguments) {
    struct sosplice_config config = {
        .size = sizeof config,
        .flavor = SOSPLICE_OPENBSD,
        .layout = SOSPLICE_LP64,
        .descriptors = DESCRIPTORS,
        .flags = SOSPLICE_FORWARD_EOF | SOSPLICE_FORWARD_RESET,
        .on_end = on_end,
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    read_settings(count, arguments);
    config.workers = settings.workers;
    event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = event < 0 ? errno : sosplice_new(&config, &layer);
    if (error != 0) {
        fprintf(stderr, "cannot start: %s\n", strerror(error));
        return 1;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    lwip_sockets_init(&sockets, layer, settings.own_thread ? wake_thread : wake_loop, NULL);
    if (settings.own_thread)
        run_thread();
    else
        run_loop();
    printf("%llu bytes moved\n", (unsigned long long)total);
    // Workers, and lwIP's own thread, which cannot be ended, may still run, and print: exit() would take the memory of
    // stdout away under them.
    fflush(stdout);
    _exit(0);
}
