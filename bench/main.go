// Command bench measures the library: how far methods of length extrapolation
// carry a small model, whether every backend computes what the rules say, how
// fast the kernels are, and how a model learns through the library's backward
// pass.
//
//	go run ./bench                 what there is
//	go run ./bench extrapolate -h  the flags of a command
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
)

// command is one word of the command line.
type command struct {
	name, summary string
	run           func(ctx context.Context, std streams, args []string) error
}

// streams are where a command writes.
type streams struct{ out, err io.Writer }

var commands = []command{
	{"extrapolate", "bits per byte and recall of methods beyond the trained length, as tables, plots and a page", extrapolate},
	{"kernels", "time the attention kernels beside the roofs of the machine and other libraries", runKernels},
	{"cache", "hold keys and values in less memory: quality by policy and codec, prefixes, bandwidth of tiers", runCache},
	{"select", "decode over chosen pages and keys beside dense attention: mass recalled, error, speed-up", runSelect},
	{"verify", "the conformance suite on every backend under both policies", verify},
	{"train", "train the model through the library's backward pass", train},
	{"methods", "list the methods of extrapolate", listMethods},
	{"modules", "list the techniques of package attention, as a table or JSON", listModules},
	{"text", "make the held-out text again from the standard library's source", makeText},
}

// errUsage is a bad command line that was already explained.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	os.Exit(run(ctx, streams{os.Stdout, os.Stderr}, os.Args[1:]))
}

// run returns the exit status: 0, 1 for a failure, 2 for a bad command line,
// 130 where it was interrupted.
func run(ctx context.Context, std streams, args []string) int {
	if len(args) == 0 {
		usage(std.out)
		return 0
	}
	for _, c := range commands {
		if c.name != args[0] {
			continue
		}
		err := c.run(ctx, std, args[1:])
		switch {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return 0
		case errors.Is(err, errUsage):
			return 2
		case errors.Is(err, context.Canceled):
			fmt.Fprintln(std.err, "interrupted")
			return 130
		}
		fmt.Fprintln(std.err, "bench:", err)
		return 1
	}
	if args[0] == "help" || args[0] == "-h" || args[0] == "-help" || args[0] == "--help" {
		usage(std.out)
		return 0
	}
	fmt.Fprintf(std.err, "bench: unknown command %q\n\n", args[0])
	usage(std.err)
	return 2
}

func usage(w io.Writer) {
	fmt.Fprint(w, "usage: go run ./bench <command> [flags]\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range commands {
		fmt.Fprintf(t, "  %s\t%s\n", c.name, c.summary)
	}
	t.Flush()
	fmt.Fprint(w, "\ngo run ./bench <command> -h lists the flags of a command.\n")
}

// newFlags is a flag set that explains itself on std.err.
func newFlags(std streams, name, summary string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(std.err)
	f.Usage = func() {
		fmt.Fprintf(std.err, "usage: go run ./bench %s [flags]\n\n%s\n\n", name, summary)
		f.PrintDefaults()
	}
	return f
}

// parse reads args, all of which must be flags.
func parse(f *flag.FlagSet, args []string) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if f.NArg() > 0 {
		fmt.Fprintf(f.Output(), "bench %s: unexpected argument %q\n", f.Name(), f.Arg(0))
		return errUsage
	}
	return nil
}
