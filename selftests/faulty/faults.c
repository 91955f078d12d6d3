// SPDX-License-Identifier: GPL-2.0
/*
 * Faults to order, for selftests/faults on the stock kernel, which has no CONFIG_FAULT_INJECTION. For tests alone: it
 * puts kprobes on the kernel's allocators and copies, and has one of them fail for the task that asked for it.
 *
 * /sys/kernel/debug/rvmm_faults:
 *   where	write "KINDS START END": from now on what is asked for below code of this range counts (enum kind)
 *   nth	write N: of what this task asks for, the Nth fails; read: how many are left until then
 */
#include <linux/debugfs.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/stacktrace.h>
#include <linux/uaccess.h>

void rvmm_faults_return(void);

/* The kinds: memory, of which a call for size 0 gives something back; copies, which say how much is left to do. */
enum kind { MEMORY = 1, RESIZE = 2, COPY = 4 };

static int on_entry(struct kprobe *probe, struct pt_regs *regs);
/* Where a probe jumps instead of trapping, its handler cannot have the function left out. */
static void on_return(struct kprobe *probe, struct pt_regs *regs, unsigned long flags) {}

struct place {
	struct kprobe probe;
	enum kind kind;
	bool there;
};
#define PLACE(name, what) \
	{ .probe = { .symbol_name = name, .pre_handler = on_entry, .post_handler = on_return }, .kind = what }
static struct place places[] = {
	PLACE("krealloc_node_align_noprof", RESIZE),
	PLACE("kvrealloc_node_align_noprof", RESIZE),
	PLACE("vrealloc_node_align_noprof", RESIZE),
	PLACE("__kmalloc_noprof", MEMORY),
	PLACE("__kmalloc_cache_noprof", MEMORY),
	PLACE("__kmalloc_node_noprof", MEMORY),
	PLACE("__kvmalloc_node_noprof", MEMORY),
	PLACE("kmem_cache_alloc_noprof", MEMORY),
	PLACE("kmem_cache_alloc_lru_noprof", MEMORY),
	PLACE("kmem_cache_alloc_node_noprof", MEMORY),
	PLACE("__alloc_frozen_pages_noprof", MEMORY),
	PLACE("pcpu_alloc_noprof", MEMORY),
	PLACE("_copy_from_user", COPY),
	PLACE("_copy_to_user", COPY),
};

static bool verbose;
module_param(verbose, bool, 0644);

static DEFINE_MUTEX(lock);
/* What is asked for, by whom: one at a time. Only that task changes `left` after it. */
static struct task_struct *target;
static unsigned int left, kinds;
static unsigned long start, end;

static bool is_below(void)
{
	unsigned long entries[32];
	unsigned int count = stack_trace_save(entries, ARRAY_SIZE(entries), 1);

	for (unsigned int i = 0; i < count; i++)
		if (entries[i] >= start && entries[i] < end)
			return true;
	return false;
}

static int on_entry(struct kprobe *probe, struct pt_regs *regs)
{
	struct place *place = container_of(probe, struct place, probe);

	if (READ_ONCE(target) != current || !left || !(place->kind & kinds))
		return 0;
	/* A trap counts as an interrupt, and only tasks copy. */
	if (place->kind != COPY && !in_task())
		return 0;
	if ((place->kind == RESIZE && !regs->si) || !is_below() || --left)
		return 0;
	if (verbose) {
		pr_info("%s fails\n", probe->symbol_name);
		dump_stack();
	}
	regs->ax = place->kind == COPY ? regs->dx : 0;
	regs->ip = (unsigned long)rvmm_faults_return;
	return 1;
}
NOKPROBE_SYMBOL(on_entry);

static ssize_t where_write(struct file *file, const char __user *from, size_t length, loff_t *at)
{
	char text[80] = "";

	if (length >= sizeof(text) || copy_from_user(text, from, length))
		return -EINVAL;
	guard(mutex)(&lock);
	WRITE_ONCE(target, NULL);
	return sscanf(text, "%u %lx %lx", &kinds, &start, &end) == 3 ? length : -EINVAL;
}

static ssize_t nth_write(struct file *file, const char __user *from, size_t length, loff_t *at)
{
	unsigned int n;
	int error = kstrtouint_from_user(from, length, 10, &n);

	if (error)
		return error;
	guard(mutex)(&lock);
	WRITE_ONCE(target, NULL);
	left = n;
	WRITE_ONCE(target, n ? current : NULL);
	return length;
}

static ssize_t nth_read(struct file *file, char __user *to, size_t length, loff_t *at)
{
	char text[12];
	int n = scnprintf(text, sizeof(text), "%u\n", left);
	loff_t begin = 0;

	/* What it takes to tell is not what was meant. */
	WRITE_ONCE(target, NULL);
	return simple_read_from_buffer(to, length, &begin, text, n);
}

static const struct file_operations where_ops = { .owner = THIS_MODULE, .write = where_write };
static const struct file_operations nth_ops = { .owner = THIS_MODULE, .write = nth_write, .read = nth_read };
static struct dentry *folder;

static void take_back(void)
{
	debugfs_remove(folder);
	for (struct place *p = places; p < places + ARRAY_SIZE(places); p++)
		if (p->there)
			unregister_kprobe(&p->probe);
}

static int __init begin(void)
{
	folder = debugfs_create_dir("rvmm_faults", NULL);
	for (struct place *p = places; p < places + ARRAY_SIZE(places); p++) {
		int error = register_kprobe(&p->probe);

		if (error) {
			pr_err("no probe at %s: %d\n", p->probe.symbol_name, error);
			take_back();
			return error;
		}
		p->there = true;
	}
	debugfs_create_file("where", 0200, folder, NULL, &where_ops);
	debugfs_create_file("nth", 0600, folder, NULL, &nth_ops);
	return 0;
}

module_init(begin);
module_exit(take_back);
MODULE_DESCRIPTION("Faults to order, for the tests of rvmm");
MODULE_LICENSE("GPL");
