/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The values of the maps of zoo.bpf.c, for the object and for the program that
 * fills them (guest/mapkit.c): both compilers must see the same layout.
 */
#ifndef ZOO_H
#define ZOO_H

#ifdef __bpf__
#include "scx_demo.h"
#else
typedef unsigned char u8;
typedef unsigned int u32;
typedef signed int s32;
typedef unsigned long long u64;
#endif
typedef signed char s8;
typedef unsigned short u16;
typedef signed short s16;
typedef signed long long s64;

#define ZOO_ARENA 0x200000000000ULL
#define ZOO_ARENA_PAGES 1024
#define NR_THINGS 24

enum color { COLOR_RED, COLOR_GREEN = 5, COLOR_BLUE = -1 };
enum huge { HUGE_ONE = 1, HUGE_TERA = 1ULL << 40, HUGE_TOP = 1ULL << 63 };
enum far { FAR_NEGATIVE = -(1LL << 40), FAR_ZERO = 0 };
enum flag { FLAG_A = 1, FLAG_B = 2, FLAG_C = 4, FLAG_HIGH = 0x80000000 };

struct task_struct;
typedef const volatile u32 fixed_t;
typedef long (*callback_t)(struct task_struct *p, int why);

/* One of everything that has a type of its own. */
struct rich {
	u32 number;
	s32 low : 5;
	u32 mid : 9;
	s32 cross : 14; /* bits 14 to 27: over three bytes */
	u64 wide : 37;
	s64 signed_wide : 20;
	u32 : 0;
	_Bool yes;
	s8 tiny;
	u16 half;
	enum color color;
	enum huge huge;
	enum far far;
	enum flag flags;
	union {
		u32 word;
		struct {
			u8 first, second;
			u16 third;
		};
	};
	struct {
		s16 x, y;
	} point[3];
	u8 matrix[2][3];
	char text[16];
	char binary[8];
	fixed_t fixed;
	callback_t callback;
	const char *banner;
	struct task_struct *task;
	void *opaque;
	union {
		u64 raw;
		struct rich *again;
	} link;
	unsigned __int128 wide_int;
};

/* Apart, because bpftool's JSON is broken by a float. */
struct measure {
	float real;
	double precise;
	union {
		u32 word;
		float as_real;
	};
	float several[2];
};

struct odd {
	u8 index;
	u8 bytes[4];
};

struct small {
	u64 square;
	u32 parts[2];
	char label[7];
};

struct flow {
	u16 port;
	u32 address; /* two bytes of padding before, three behind */
	u8 protocol;
};

struct counter {
	u64 hits;
	u32 cpu;
	char tag[3];
};

struct lpm4 {
	u32 prefixlen;
	u8 address[4];
};

struct route {
	u32 metric;
	char name[12];
};

struct note {
	u32 number;
	s32 pid;
	char tag[12];
	u64 cookie;
};

struct record {
	u32 number;
	u16 kind;
	u16 length;
	char text[16];
};

/* What a fill program is told, and what it answers. */
struct order {
	u64 what;
	u64 argument;
	u64 user_address;
	s64 answer;
};

#endif
