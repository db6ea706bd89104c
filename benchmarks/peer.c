/* libzmq alone: the lower limit for every program that uses it.
 *
 *   peer version
 *   peer receive COUNT SIZE        read a full inproc queue
 *   peer publish COUNT SIZE        send ready frames to an inproc subscriber without a high-water mark
 *   peer sub ENDPOINT COUNT        read from another process
 *   peer pub ENDPOINT COUNT SIZE   send to another process, once it has subscribed
 *
 * Prints one line of JSON: nanoseconds per message. The CPU time is that of the thread for `receive` and `publish`, and
 * that of the process for `sub` and `pub`.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void check(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
        exit(1);
    }
}

static void *open_socket(void *context, int kind, const char *endpoint, int binds)
{
    int none = 0;
    void *socket = zmq_socket(context, kind);
    check(socket != NULL, "socket");
    zmq_setsockopt(socket, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &none, sizeof none);
    check((binds ? zmq_bind(socket, endpoint) : zmq_connect(socket, endpoint)) == 0, endpoint);
    if (kind == ZMQ_SUB)
        check(zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "stocks.", 7) == 0, "subscribe");
    return socket;
}

static void receive_one(void *socket)
{
    zmq_msg_t message;
    zmq_msg_init(&message);
    check(zmq_msg_recv(&message, socket, 0) >= 0, "recv");
    zmq_msg_close(&message);
}

static void send_all(void *socket, long count, const char *frame, long size)
{
    for (long i = 0; i < count; i++)
        check(zmq_send(socket, frame, size, 0) >= 0, "send");
}

static void print(clockid_t clock, double cpu, double wall, long count)
{
    cpu = (now(clock) - cpu) / count;
    wall = (now(CLOCK_MONOTONIC) - wall) / count;
    printf("{\"CPU ns\": %.1f, \"wall ns\": %.1f, \"messages/s\": %.0f}\n", cpu, wall, 1e9 / wall);
    fflush(stdout);
}

static char *frame_of(long size)
{
    char *frame = malloc(size);
    memset(frame, 'x', size);
    memcpy(frame, "stocks.AAPL", size < 12 ? size : 12);
    return frame;
}

static void inside(void *context, int receives, long count, long size)
{
    void *pub = open_socket(context, ZMQ_XPUB, "inproc://peer", 1);
    void *sub = open_socket(context, ZMQ_SUB, "inproc://peer", 0);
    char *frame = frame_of(size);
    receive_one(pub); /* the subscription */
    double cpu = now(CLOCK_THREAD_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
    send_all(pub, count, frame, size);
    if (receives) {
        cpu = now(CLOCK_THREAD_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
        for (long i = 0; i < count; i++)
            receive_one(sub);
    }
    print(CLOCK_THREAD_CPUTIME_ID, cpu, wall, count);
    free(frame);
    zmq_close(pub);
    zmq_close(sub);
}

static void subscribe(void *context, const char *endpoint, long count)
{
    void *sub = open_socket(context, ZMQ_SUB, endpoint, 0);
    double cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    receive_one(sub);
    double wall = now(CLOCK_MONOTONIC);
    for (long i = 1; i < count; i++)
        receive_one(sub);
    print(CLOCK_PROCESS_CPUTIME_ID, cpu, wall, count);
    zmq_close(sub);
}

static void publish(void *context, const char *endpoint, long count, long size)
{
    void *pub = open_socket(context, ZMQ_XPUB, endpoint, 1);
    char *frame = frame_of(size);
    receive_one(pub);
    double cpu = now(CLOCK_PROCESS_CPUTIME_ID), wall = now(CLOCK_MONOTONIC);
    send_all(pub, count, frame, size);
    zmq_close(pub);
    zmq_ctx_term(context); /* returns when all messages have left */
    print(CLOCK_PROCESS_CPUTIME_ID, cpu, wall, count);
    free(frame);
}

int main(int number, char **word)
{
    const char *what = number > 1 ? word[1] : "version";
    int major, minor, patch;
    void *context = zmq_ctx_new();
    zmq_version(&major, &minor, &patch);
    if (!strcmp(what, "version"))
        printf("\"%d.%d.%d\"\n", major, minor, patch);
    else if (!strcmp(what, "sub") && number == 4)
        subscribe(context, word[2], atol(word[3]));
    else if (!strcmp(what, "pub") && number == 5) {
        publish(context, word[2], atol(word[3]), atol(word[4]));
        return 0;
    } else if (number == 4)
        inside(context, !strcmp(what, "receive"), atol(word[2]), atol(word[3]));
    else
        return 2;
    zmq_ctx_term(context);
    return 0;
}
