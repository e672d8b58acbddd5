/* The owner of a C handle. Part of kvlink.hpp. */

#ifndef KVLINK_HANDLE_HPP
#define KVLINK_HANDLE_HPP

#include <utility>

#include "result.hpp"

namespace kvlink::detail {

/* Moved, never copied. Destroy takes NULL. */
template <class T, kvlink_status_t (*Destroy)(T*)>
class Handle {
public:
    Handle() noexcept = default;

    /* Takes over a handle made in C. */
    explicit Handle(T* handle) noexcept : handle_(handle) {}

    Handle(Handle&& other) noexcept : handle_(other.release()) {}
    Handle& operator=(Handle&& other) noexcept
    {
        if (this != &other)
            (void)Destroy(std::exchange(handle_, other.release()));
        return *this;
    }

    /* Whatever a destructor cannot report: close() does. */
    ~Handle() { (void)Destroy(handle_); }

    /* Ends it now. The handle is kept, as a stale one: other threads may be calling. */
    Result<void> close() const { return result(Destroy(handle_)); }

    /* Whether it holds a handle: not if it was moved from. */
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    /* The C handle; still owned here. */
    T* c_handle() const noexcept { return handle_; }

    /* Gives the C handle away. */
    [[nodiscard]] T* release() noexcept { return std::exchange(handle_, nullptr); }

private:
    T* handle_ = nullptr;
};

} // namespace kvlink::detail

#endif
