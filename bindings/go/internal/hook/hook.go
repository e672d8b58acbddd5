// Package hook lets the cost program reach what is not public.
package hook

// Poll takes the events that wait at a *kvlink.Agent, as its goroutine does.
var Poll func(agent any) error
