// SPDX-License-Identifier: GPL-2.0
/*
 * Both ends of a conversation over vsock, for tests of the launcher's (tools/lib/bed/launcher.sh): no test by itself.
 *
 *	vsock answer PORT		sends back each line that somebody sends to that port, for ever
 *	vsock ask CID PORT TEXT		sends one, until there is an answer, and shows that
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

static int end(const char *what)
{
	perror(what);
	return 1;
}

static struct sockaddr_vm address(unsigned int cid, const char *port)
{
	return (struct sockaddr_vm) { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = atoi(port) };
}

static int answer(const char *port)
{
	struct sockaddr_vm where = address(VMADDR_CID_ANY, port);
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (listener < 0 || bind(listener, (void *)&where, sizeof(where)) || listen(listener, 4))
		return end("listen");
	printf("vsock: listening\n");
	fflush(stdout);
	for (;;) {
		int with = accept(listener, NULL, NULL);
		char line[256];
		ssize_t length;

		if (with < 0)
			return end("accept");
		while ((length = read(with, line, sizeof(line))) > 0)
			if (write(with, line, length) != length)
				break;
		close(with);
	}
}

static int ask(unsigned int cid, const char *port, const char *text)
{
	/* It may have to start. */
	for (int tries = 0; tries < 600; tries++) {
		struct sockaddr_vm where = address(cid, port);
		int with = socket(AF_VSOCK, SOCK_STREAM, 0);
		char line[256];
		ssize_t length;

		if (with < 0)
			return end("socket");
		if (!connect(with, (void *)&where, sizeof(where)) && write(with, text, strlen(text)) == strlen(text)) {
			length = read(with, line, sizeof(line));
			if (length > 0) {
				printf("vsock: %u answers %.*s\n", cid, (int)length, line);
				return 0;
			}
		}
		close(with);
		usleep(100000);
	}
	return end("ask");
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "answer"))
		return answer(argv[2]);
	if (argc == 5 && !strcmp(argv[1], "ask"))
		return ask(strtoul(argv[2], NULL, 0), argv[3], argv[4]);
	printf("TAP version 13\n1..0 # SKIP one end of a conversation (see there)\n");
	return 4;
}
