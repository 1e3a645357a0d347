/*
 * The limit that copying over a socket can be held against: copy-loop SOURCE DESTINATION
 * One process reads SOURCE and writes it to a loopback TCP connection, another reads the connection, writes DESTINATION
 * (created or overwritten, never truncated) and syncs it. No protocol, no checks, one thread and one buffer each.
 * Prints the CPU seconds of either side.
 */
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[1 << 20];

/* Full buffers only: a new file that is written in whole, aligned MiB costs the kernel half of what odd pieces cost. */
static void copy(int from, int to)
{
    for (ssize_t have = sizeof buffer, n; have == sizeof buffer;) {
        for (have = 0; have < (ssize_t)sizeof buffer; have += n) {
            if ((n = read(from, buffer + have, sizeof buffer - have)) < 0) err(1, "read");
            if (n == 0) break;
        }
        for (ssize_t done = 0; done < have; done += n)
            if ((n = write(to, buffer + done, have - done)) < 0) err(1, "write");
    }
}

static double cpu_seconds(int who)
{
    struct rusage u;
    getrusage(who, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    if (argc != 3) errx(64, "usage: copy-loop SOURCE DESTINATION");
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    int status, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, size) || listen(listener, 1) || getsockname(listener, (void *)&at, &size))
        err(1, "listen");
    pid_t sender = fork();
    if (sender < 0) err(1, "fork");
    if (sender == 0) {
        int source = open(argv[1], O_RDONLY), wire = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(wire, (void *)&at, size) || source < 0) err(1, "%s", argv[1]);
        copy(source, wire);
        return 0;
    }
    int wire = accept(listener, NULL, NULL), destination = open(argv[2], O_WRONLY | O_CREAT, 0600);
    if (wire < 0 || destination < 0) err(1, "%s", argv[2]);
    copy(wire, destination);
    if (fdatasync(destination)) err(1, "sync");
    if (waitpid(sender, &status, 0) < 0 || status != 0) errx(1, "the sender failed");
    printf("{\"sender\": %.6f, \"receiver\": %.6f}\n", cpu_seconds(RUSAGE_CHILDREN), cpu_seconds(RUSAGE_SELF));
    return 0;
}
