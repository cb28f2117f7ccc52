/* A TAP device as an interface of lwIP. */

#ifndef TAP_H
#define TAP_H

#include "lwip/netif.h"

/* Opens a device, which may exist, and adds an interface: up, the default, with an address that never changes. Returns
   the descriptor, which does not wait, or -1. */
int tap_open(const char *device, struct netif *netif, const ip4_addr_t *address, const ip4_addr_t *mask,
             netif_input_fn input);

/* Receives frames, at most so many, and gives them to lwIP. Returns how many there were, or -1 if the device is gone. */
int tap_receive(int tap, struct netif *netif, int most);

#endif
