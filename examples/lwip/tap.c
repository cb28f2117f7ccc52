/* See tap.h. */

#include "tap.h"
#include "lwip/etharp.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { MTU = 1500, FRAME = MTU + 14 + 4 };

/* LWIP_NETIF_TX_SINGLE_PBUF: a packet is one pbuf. A full queue of the device drops it, as a cable does. */
static err_t tap_output(struct netif *netif, struct pbuf *packet) {
    int tap = (int)(intptr_t)netif->state;
    if (packet->next != NULL)
        return ERR_BUF;
    return write(tap, packet->payload, packet->len) == packet->len ? ERR_OK : ERR_IF;
}

static err_t tap_init(struct netif *netif) {
    static const u8_t MAC[6] = {2, 0, 0, 0, 0x1e, 0x1f};
    netif->name[0] = 't';
    netif->name[1] = 'p';
    netif->mtu = MTU;
    netif->hwaddr_len = sizeof MAC;
    memcpy(netif->hwaddr, MAC, sizeof MAC);
    netif->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET;
    netif->output = etharp_output;
    netif->linkoutput = tap_output;
    return ERR_OK;
}

int tap_open(const char *device, struct netif *netif, const ip4_addr_t *address, const ip4_addr_t *mask,
             netif_input_fn input) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    ip4_addr_t none;
    ip4_addr_set_zero(&none);
    strncpy(request.ifr_name, device, sizeof request.ifr_name - 1);
    int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (tap < 0)
        return -1;
    if (ioctl(tap, TUNSETIFF, &request) < 0 ||
        netif_add(netif, address, mask, &none, (void *)(intptr_t)tap, tap_init, input) == NULL) {
        close(tap);
        return -1;
    }
    netif_set_default(netif);
    netif_set_up(netif);
    netif_set_link_up(netif);
    return tap;
}

int tap_receive(int tap, struct netif *netif, int most) {
    u8_t frame[FRAME];
    int count = 0;
    while (count < most) {
        ssize_t length = read(tap, frame, sizeof frame);
        if (length < 0)
            return errno == EAGAIN || errno == EINTR ? count : -1;
        count++;
        /* Not PBUF_POOL: in Debian's build such a buffer has room for 592 bytes, whatever its length says. */
        struct pbuf *packet = pbuf_alloc(PBUF_RAW, (u16_t)length, PBUF_RAM);
        if (packet == NULL)
            continue;
        pbuf_take(packet, frame, (u16_t)length);
        if (netif->input(packet, netif) != ERR_OK)
            pbuf_free(packet);
    }
    return count;
}
