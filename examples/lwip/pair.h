/* For tests: lwIP in the thread of a loop, with two interfaces that are joined in memory. Its functions may be called from
   any thread, and wait for that one. */

#ifndef PAIR_H
#define PAIR_H

#include "sosplice.h"
#include <stddef.h>

/* Starts the thread, once for the process. `layer` has to stay. Without a thread, one thread at a time calls all functions,
   and lwIP works in pair_run(), and in those that wait; its time is set. */
void pair_start(const struct sosplice *layer, int without_thread);

/* Without a thread: does a piece of work. 0 if there is none now. */
int pair_run(void);

/* Without a thread: the time, and milliseconds until lwIP's next timer. */
void pair_set_time(unsigned milliseconds);
unsigned pair_timeout(void);

/* Makes a connection from one interface to the other, and stores the descriptors of both ends. 0, or an error number. */
int pair_connect(size_t rcv_hiwat, size_t snd_hiwat, int *client, int *server);

/* Begins a connection whose SYN is held. Returns its number. */
int pair_connecting(int *client);

/* Lets the SYN of this number go: to a listener, and stores the other end's descriptor; or, if `server` is null, to none. */
int pair_complete(int number, int *server);

/* A socket that is not connected: `state` is that of struct sosplice_protocol. */
int pair_posed(int state, int *fd);

/* Connections that lwIP or sosplice still has. */
size_t pair_open(void);

#endif
